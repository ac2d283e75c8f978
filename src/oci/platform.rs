//! Platforms, by which an index tells its manifests apart.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// OCI image specification, image-index.md, "platform property".
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// What buildkit gives to manifests that are for no platform is `unknown/unknown`.
    pub fn is_known(&self) -> bool {
        ![&self.os, &self.architecture].into_iter().any(|part| part.is_empty() || part == "unknown")
    }

    /// Whether this one will do for who asked for `wanted`: any variant where none was asked for, and `v8` is what 64
    /// bits of ARM have if they do not say (containerd, platforms/database.go).
    pub fn is(&self, wanted: &Self) -> bool {
        let variant = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm64", None | Some("")) => "v8".to_owned(),
            (_, variant) => variant.unwrap_or_default().to_owned(),
        };
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || variant(self) == variant(wanted))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is written OS/ARCHITECTURE[/VARIANT], such as linux/arm64/v8")]
pub struct ParsePlatformError;

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let mut parts = text.split('/').map(str::to_owned);
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        match (os, architecture, parts.next()) {
            (Some(os), Some(architecture), None)
                if ![&os, &architecture].into_iter().chain(&variant).any(String::is_empty) =>
            {
                Ok(Self { os, architecture, variant })
            }
            _ => Err(ParsePlatformError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_written_with_slashes_and_a_variant_may_be_left_out() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        for text in ["linux/amd64", "linux/arm64/v8"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for wrong in ["", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert_eq!(wrong.parse::<Platform>(), Err(ParsePlatformError), "{wrong}");
        }
        assert!(platform("linux/arm/v7").is(&platform("linux/arm")));
        assert!(platform("linux/arm64").is(&platform("linux/arm64/v8")));
        assert!(!platform("linux/arm").is(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").is(&platform("windows/amd64")));
    }
}

//! Which sub-folder goes into which layer.

use std::collections::HashMap;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::read_small;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a file that maps sub-folders to layers.
const LARGEST_MAP: u64 = 64 << 20;
/// The line that a CSV file may begin with.
const HEADER: &str = "folder,layer";

#[derive(Debug)]
pub enum Grouping {
    /// A layer a sub-folder.
    PerFolder,
    /// Names of layers by sub-folder.
    Map(HashMap<String, String>),
    /// The first capture group, or without one the match, names the layer.
    Pattern(Regex),
}

impl Grouping {
    /// `text`: a file that is there, else a regular expression.
    pub fn parse(text: &str) -> Result<Self> {
        if Path::new(text).is_file() {
            return Ok(Self::Map(map(text)?));
        }
        Regex::new(text).map(Self::Pattern).map_err(|error| {
            let cause = format!("neither a file nor a regular expression: {}", error.to_string().replace('\n', " "));
            Error::new(ErrorKind::Usage, text, cause).hint("eo-mount pack --help has examples")
        })
    }

    /// The layer of a sub-folder.
    pub fn layer_of(&self, folder: &str) -> Result<String> {
        let (name, hint) = match self {
            Self::PerFolder => return Ok(folder.to_owned()),
            Self::Map(map) => (map.get(folder).cloned(), "add it to the file, or move it away"),
            Self::Pattern(pattern) => {
                let found = pattern.captures(folder).and_then(|found| found.get(1).or_else(|| found.get(0)));
                (found.map(|found| found.as_str().to_owned()), "write an expression that fits, or move it away")
            }
        };
        name.ok_or_else(|| Error::new(ErrorKind::Usage, folder, "no layer is named for this sub-folder").hint(hint))
    }
}

/// JSON: an object from sub-folder to layer. Anything else is CSV: a line a sub-folder, `folder,layer`.
fn map(path: &str) -> Result<HashMap<String, String>> {
    let bytes = read_small(Path::new(path), LARGEST_MAP)?;
    let wrong = |cause: String| {
        Error::new(ErrorKind::Usage, path, cause)
            .hint(r#"write a line FOLDER,LAYER for each sub-folder, or JSON: {"FOLDER": "LAYER", …}"#)
    };
    let text = String::from_utf8(bytes).map_err(|_| wrong("not UTF-8".to_owned()))?;
    let text = text.trim_start_matches('\u{feff}');
    let mut map = HashMap::new();
    let mut add = |folder: &str, layer: &str| match map.insert(folder.to_owned(), layer.to_owned()) {
        Some(other) if other != layer => Err(wrong(format!("{folder} is in two layers, {other} and {layer}"))),
        _ => Ok(()),
    };
    if text.trim_start().starts_with('{') {
        let json: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|error| wrong(format!("not JSON: {error}")))?;
        for (folder, layer) in &json {
            let layer = layer.as_str().ok_or_else(|| wrong(format!("{folder}: its layer is no text")))?;
            add(folder, layer)?;
        }
        return Ok(map);
    }
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || number == 0 && line.trim() == HEADER {
            continue;
        }
        let fields = line.split_once(',').map(|(folder, layer)| (folder.trim(), layer.trim()));
        match fields {
            Some((folder, layer)) if !folder.is_empty() && !layer.contains([',', '"']) => add(folder, layer)?,
            _ => return Err(wrong(format!("line {}: not FOLDER,LAYER", number + 1))),
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Grouping> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Grouping::parse(file.path().to_str().unwrap())
    }

    #[test]
    fn csv_json_and_expressions_name_layers() {
        for text in ["folder,layer\n10000,t30uxv\n\n10001, t31tfj\r\n", r#"{"10000": "t30uxv", "10001": "t31tfj"}"#] {
            let grouping = file(text).unwrap();
            assert_eq!(grouping.layer_of("10000").unwrap(), "t30uxv");
            assert_eq!(grouping.layer_of("10001").unwrap(), "t31tfj");
            let error = grouping.layer_of("10002").unwrap_err();
            assert!(error.to_string().starts_with("10002: no layer is named"), "{error}");
        }
        let grouping = Grouping::parse("^(t[0-9]{2}[a-z]{3})_").unwrap();
        assert_eq!(grouping.layer_of("t30uxv_10000").unwrap(), "t30uxv");
        assert!(grouping.layer_of("x_t30uxv_").is_err());
        assert_eq!(Grouping::parse(r"^\d\d").unwrap().layer_of("10000").unwrap(), "10");
    }

    #[test]
    fn a_file_that_maps_nothing_says_what_is_wrong() {
        for (text, cause) in [
            ("10000", "line 1: not FOLDER,LAYER"),
            ("a,b,c", "line 1"),
            ("a,\"b\"", "line 1"),
            ("a,b\na,c", "a is in two layers, b and c"),
            (r#"{"a": 1}"#, "its layer is no text"),
            ("{", "not JSON"),
        ] {
            let error = file(text).unwrap_err();
            assert!(error.kind == ErrorKind::Usage && error.to_string().contains(cause), "{error}");
        }
        assert!(Grouping::parse("(").unwrap_err().to_string().contains("neither a file nor a regular expression"));
    }
}

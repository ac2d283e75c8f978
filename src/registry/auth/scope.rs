//! What a token is for (distribution specification, "token scope").

/// Of one request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope(Vec<String>);

impl Scope {
    /// Repositories and what is done there: `pull`, `pull,push`. None: only who asks is of interest.
    pub fn of(parts: &[(&str, &str)]) -> Self {
        Self(parts.iter().map(|(repository, actions)| format!("repository:{repository}:{actions}")).collect())
    }

    pub fn parts(&self) -> &[String] {
        &self.0
    }
}

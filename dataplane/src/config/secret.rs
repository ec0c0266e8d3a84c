//! Values that must not reach a log: their `Debug` output is masked, and they have no `Display`.

use std::fmt;

use url::Url;

pub(super) const MASK: &str = "***";

/// A password or key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one place that uses it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// A URL that may carry a password, in its authority or as a query parameter.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    /// As it was given: drivers have their own opinion about escapes.
    text: String,
    masked: String,
}

impl SecretUrl {
    pub fn parse(text: &str) -> Result<Self, url::ParseError> {
        let url = Url::parse(text)?;
        Ok(SecretUrl { text: text.to_owned(), masked: mask(url) })
    }

    /// The whole URL, for the one place that connects to it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn scheme(&self) -> &str {
        self.text.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// Fit to be logged.
    #[must_use]
    pub fn masked(&self) -> &str {
        &self.masked
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

/// The URL with every password replaced. All query values are dropped, because only their names are known to be harmless.
fn mask(mut url: Url) -> String {
    if url.password().is_some() {
        // Fails only for URLs that cannot have a password, and this one has.
        let _ = url.set_password(Some(MASK));
    }
    let names: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
    url.set_query(None);
    url.set_fragment(None);
    if names.is_empty() { url.into() } else { format!("{url}?{}", names.join("&")) }
}

/// The text of a URL or URL pattern without the user and password it may contain.
#[must_use]
pub fn mask_text(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{MASK}{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked() {
        for (given, shown) in [
            ("postgres://u:hunter2@db:5432/zero", "postgres://u:***@db:5432/zero"),
            ("postgresql://u@db/zero", "postgresql://u@db/zero"),
            ("postgres://db/zero?password=hunter2&sslmode=require", "postgres://db/zero?password&sslmode"),
            ("postgres:///zero?host=/run/postgresql", "postgres:///zero?host"),
            ("ws://:hunter2@rm:4849/", "ws://:***@rm:4849/"),
        ] {
            let url = SecretUrl::parse(given).unwrap();
            assert_eq!(format!("{url:?}"), shown);
            assert_eq!(url.expose(), given);
        }
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
        assert_eq!(mask_text("https://u:hunter2@*.example.com/push/:id"), "https://***@*.example.com/push/:id");
        assert_eq!(mask_text("https://example.com/a@b"), "https://example.com/a@b");
    }
}

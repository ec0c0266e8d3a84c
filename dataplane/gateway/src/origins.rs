//! Which web pages may connect. Browsers say where a page comes from; whoever is no browser says what it likes, so this protects
//! people's cookies from pages of others and nothing else.

/// `scheme://host` with a port unless it is the scheme's own; the host may begin with `*.` for every name below it.
#[derive(Debug)]
pub(crate) struct Origins {
    /// Lower-case. Empty: all may.
    allowed: Vec<String>,
}

impl Origins {
    pub(crate) fn new(allowed: &[String]) -> Origins {
        let allowed = allowed.iter().map(|origin| origin.trim().trim_end_matches('/').to_ascii_lowercase());
        Origins { allowed: allowed.collect() }
    }

    /// `None`: the request does not come from a web page.
    pub(crate) fn admits(&self, origin: Option<&str>) -> bool {
        let Some(origin) = origin.filter(|_| !self.allowed.is_empty()) else { return true };
        let origin = origin.to_ascii_lowercase();
        self.allowed.iter().any(|allowed| match allowed.split_once("://*.") {
            None => *allowed == origin,
            Some((scheme, domain)) => origin
                .strip_prefix(scheme)
                .and_then(|rest| rest.strip_prefix("://")?.strip_suffix(domain)?.strip_suffix('.'))
                .is_some_and(|name| {
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
                }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_are_refused() {
        let origins = Origins::new(&["https://App.example.com/".to_owned(), "https://*.example.org".to_owned()]);
        for (origin, admitted) in [
            (Some("https://app.example.com"), true),
            (Some("https://APP.example.com"), true),
            (Some("http://app.example.com"), false),
            (Some("https://app.example.com:8443"), false),
            (Some("https://app.example.com.evil.net"), false),
            (Some("https://a.b.example.org"), true),
            (Some("https://example.org"), false),
            (Some("https://.example.org"), false),
            (Some("https://evil.net/x.example.org"), false),
            (Some("https://evilexample.org"), false),
            (Some("null"), false),
            (Some(""), false),
            (None, true),
        ] {
            assert_eq!(origins.admits(origin), admitted, "{origin:?}");
        }
        assert!(Origins::new(&[]).admits(Some("https://anything")));
    }
}

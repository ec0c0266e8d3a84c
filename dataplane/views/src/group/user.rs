//! Whose a client group is. It is remembered with the group, on whatever node and however long, and says nothing to whoever
//! reads the database: a hash under a key of the group's own.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The user of a client group, or that it is nobody's in particular.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    key: String,
    hash: String,
}

impl User {
    /// `None` is a user like others: one who is not logged in.
    #[must_use]
    pub fn of(user: Option<&str>) -> User {
        let key = format!("{:032x}", rand::random::<u128>());
        let hash = hash(&key, user);
        User { key, hash }
    }

    #[must_use]
    pub fn is(&self, user: Option<&str>) -> bool {
        hash(&self.key, user) == self.hash
    }
}

fn hash(key: &str, user: Option<&str>) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key of any length will do");
    // Nobody differs from one whose name is empty.
    mac.update(if user.is_some() { b"+" } else { b"-" });
    mac.update(user.unwrap_or_default().as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_again_and_not_readable() {
        let user = User::of(Some("ann"));
        assert!(user.is(Some("ann")));
        assert!(!user.is(Some("bob")) && !user.is(None) && !user.is(Some("")));
        assert!(User::of(None).is(None) && !User::of(None).is(Some("")));
        let text = serde_json::to_string(&user).unwrap();
        assert!(!text.contains("ann"));
        assert_eq!(serde_json::from_str::<User>(&text).unwrap(), user);
        assert_ne!(User::of(Some("ann")).hash, user.hash, "equal users of two groups look different");
    }
}

//! What one setting is: its variable, flag, type, default, meaning, and what becomes of it in this build.

/// How a setting's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// JavaScript number syntax: decimal, exponent, `0x`, `0o` and `0b`.
    Number,
    /// `true`, `1`, `false` or `0`; a bare flag means true.
    Bool,
    /// Comma-separated in the environment, several words after a flag.
    List,
    Choice(&'static [&'static str]),
}

/// What becomes of a setting that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read, checked and obeyed.
    Used,
    /// Accepted so that existing deployments start unchanged; nothing here depends on it, for this reason.
    Inert(&'static str),
    /// Accepted, but the part of the server it steers is not in this build.
    NotBuilt(&'static str),
    /// An old spelling of another setting.
    Replaced(&'static str),
    /// Written by the original's parent process for its children; ignored without a word.
    Internal,
    /// Giving it is an error: this is what to do instead.
    Rejected(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub variable: &'static str,
    pub kind: Kind,
    /// Text of the default as it would be given in the environment.
    pub default: Option<&'static str>,
    /// Where the default comes from when it is computed.
    pub derived: Option<&'static str>,
    pub meaning: &'static str,
    pub effect: Effect,
    pub required: bool,
    /// The value is never printed.
    pub secret: bool,
    pub hidden: bool,
    /// Read from the environment only; there is no flag.
    pub no_flag: bool,
}

const fn setting(variable: &'static str, kind: Kind, meaning: &'static str) -> Setting {
    Setting {
        variable,
        kind,
        default: None,
        derived: None,
        meaning,
        effect: Effect::Used,
        required: false,
        secret: false,
        hidden: false,
        no_flag: false,
    }
}

pub(super) const fn text(variable: &'static str, meaning: &'static str) -> Setting {
    setting(variable, Kind::Text, meaning)
}

pub(super) const fn number(variable: &'static str, meaning: &'static str) -> Setting {
    setting(variable, Kind::Number, meaning)
}

pub(super) const fn boolean(variable: &'static str, meaning: &'static str) -> Setting {
    setting(variable, Kind::Bool, meaning)
}

pub(super) const fn list(variable: &'static str, meaning: &'static str) -> Setting {
    setting(variable, Kind::List, meaning)
}

pub(super) const fn choice(variable: &'static str, choices: &'static [&'static str], meaning: &'static str) -> Setting {
    setting(variable, Kind::Choice(choices), meaning)
}

impl Setting {
    pub(super) const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    pub(super) const fn derived(mut self, rule: &'static str) -> Self {
        self.derived = Some(rule);
        self
    }

    pub(super) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    pub(super) const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    pub(super) const fn no_flag(mut self) -> Self {
        self.no_flag = true;
        self
    }

    pub(super) const fn inert(mut self, reason: &'static str) -> Self {
        self.effect = Effect::Inert(reason);
        self
    }

    pub(super) const fn not_built(mut self, part: &'static str) -> Self {
        self.effect = Effect::NotBuilt(part);
        self
    }

    pub(super) const fn replaced_by(mut self, variable: &'static str) -> Self {
        self.effect = Effect::Replaced(variable);
        self.hidden = true;
        self
    }

    pub(super) const fn internal(mut self) -> Self {
        self.effect = Effect::Internal;
        self.hidden = true;
        self
    }

    pub(super) const fn rejected(mut self, remedy: &'static str) -> Self {
        self.effect = Effect::Rejected(remedy);
        self.hidden = true;
        self
    }

    /// The flag without its dashes, derived from the variable: `ZERO_UPSTREAM_DB` becomes `upstream-db`.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        let name = self.variable.strip_prefix("ZERO_")?;
        (!self.no_flag).then(|| name.to_ascii_lowercase().replace('_', "-"))
    }
}

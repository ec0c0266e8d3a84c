//! `CONFIG.md`: the table of settings as a page for people.

use std::fmt::Write as _;

use super::option::{Effect, Kind, Setting};
use super::settings;

const HEAD: &str = "\
# Configuration

Generated from the table of settings in `src/config/settings.rs`; `UPDATE_REFERENCE=1 cargo test -p zero-cache --lib` writes it
anew. Do not edit it by hand.

* Everything is configured by environment variables. Each has a flag of the same name without `ZERO_`, in lower case with
  dashes: `ZERO_UPSTREAM_DB` is `--upstream-db`. A flag comes before the environment, the environment before the default.
* A variable that is present but empty is not set. Unknown variables are left alone; an unknown flag is an error.
* Lists are separated by commas in the environment and by spaces after a flag. Booleans are `true`, `1`, `false` or `0`.
  Numbers are written as in JavaScript.
* A `.env` file in the working directory is read as well; the real environment wins.
* All problems are reported at once, and the process exits with 255. Secrets are never printed.

The last column says what becomes of a setting here. Settings marked *no effect* are accepted so that an existing deployment
starts unchanged; those that are set are named in one line of the log. The same goes for *not built*, as a warning.

Differences from the original that a deployment may notice:

* An unknown flag ends the process with 255, not with 0.
* The task ID is not looked up in the ECS metadata; set `ZERO_TASK_ID` where the name matters.
* Pools may be smaller than `ZERO_NUM_SYNC_WORKERS`; out-of-range numbers are refused instead of being taken as they are.

Exit codes: 0 after a drain, or when Postgres refuses the configured user, password or database; 13 when a part of the server
fails unexpectedly; 14 when it stops at once and on purpose (SIGQUIT, an automatic reset, the stream taken over); 255 when the
configuration is refused or the server cannot start or go on.
";

/// The whole page.
#[must_use]
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for (title, settings) in settings::SECTIONS {
        let _ = write!(page, "\n## {title}\n\n| variable | type | default | meaning | here |\n|---|---|---|---|---|\n");
        for setting in *settings {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {} |",
                setting.variable,
                kind(setting),
                default(setting),
                setting.meaning,
                here(setting.effect)
            );
        }
    }
    page
}

fn kind(setting: &Setting) -> String {
    let name = match setting.kind {
        Kind::Text => "text".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::Bool => "boolean".to_owned(),
        Kind::List => "list".to_owned(),
        Kind::Choice(choices) => choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", "),
    };
    if setting.secret { format!("{name}, secret") } else { name }
}

fn default(setting: &Setting) -> String {
    match (setting.required, setting.default, setting.derived) {
        (true, ..) => "**required**".to_owned(),
        (_, Some(text), _) => format!("`{text}`"),
        (_, None, Some(rule)) => rule.to_owned(),
        (_, None, None) => String::new(),
    }
}

fn here(effect: Effect) -> String {
    match effect {
        Effect::Used => "used".to_owned(),
        Effect::Inert(reason) => format!("no effect: {reason}"),
        Effect::NotBuilt(part) => format!("not built: {part}"),
        Effect::Replaced(new) => format!("use `{new}`"),
        Effect::Internal => "ignored: internal to the original".to_owned(),
        Effect::Rejected(remedy) => format!("refused: {remedy}"),
    }
}

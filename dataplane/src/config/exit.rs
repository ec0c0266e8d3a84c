//! Exit codes of the server, as orchestrators see them.

/// A normal end: drained after SIGTERM or SIGINT, or help was printed. Also used when Postgres refuses the configured user,
/// password or database, because restarting and alerting would not help.
pub const OK: u8 = 0;
/// A part of the server failed in a way it did not expect; the failure has been logged.
pub const FAULT: u8 = 13;
/// Stopped at once and on purpose, without a drain: SIGQUIT, an automatic reset, or the stream was taken over.
pub const STOPPED: u8 = 14;
/// The configuration or command line was refused, or the server could not start or go on.
pub const ERROR: u8 = 255;

pub(super) const HELP: &str = "\
Exit codes:
  0    drained after SIGTERM or SIGINT, or Postgres refused the configured user, password or database
  13   a part of the server failed unexpectedly; the failure has been logged
  14   stopped at once and on purpose: SIGQUIT, an automatic reset, or the stream was taken over
  255  the configuration was refused, or the server could not start or go on";

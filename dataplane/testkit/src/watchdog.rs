//! Ends what this process has started when this process is gone for whatever reason: a killed test run leaves no server behind.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Reads which processes live, until the end of its input.
const SCRIPT: &str = r#"
alive=" "
while read -r sign id; do
  case $sign in
  +) alive="$alive$id " ;;
  -) alive="${alive%% $id *} ${alive#* $id }" ;;
  esac
done
[ "$alive" = " " ] || kill -KILL $alive
"#;

static DOG: Mutex<Option<Child>> = Mutex::new(None);

/// From now on the process ends with this one.
pub(crate) fn watch(id: u32) -> Result<()> {
    tell('+', id)
}

/// The process has ended; its number may soon be somebody else's.
pub(crate) fn forget(id: u32) {
    // Without a watchdog there is nobody to tell.
    let _ = tell('-', id);
}

fn tell(sign: char, id: u32) -> Result<()> {
    let mut dog = DOG.lock().unwrap_or_else(PoisonError::into_inner);
    if dog.is_none() {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "watchdog"]).current_dir("/");
        // A process group of its own: Ctrl-C ends the tests, and their end wakes the dog.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        *dog = Some(command.spawn().context("start the watchdog")?);
    }
    let pipe = dog.as_mut().and_then(|dog| dog.stdin.as_mut()).context("the watchdog has a pipe")?;
    writeln!(pipe, "{sign} {id}").context("tell the watchdog")
}

//! Every thread and task of the process does its part, or the process ends: a part that is missing looks healthy and is not.
//!
//! A panic ends the process at once, wherever it happens, unless the work says that it is [`fault::contained`]: that of one
//! connection or one query, which is all that then ends. An end is safe at any moment: nothing is acknowledged or shown before it is stored.
//!
//! A part that ends without a panic reports to whoever started it.

use crate::config::exit;

/// Takes all panics of the process from here on.
pub fn start() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason given");
        let thread = std::thread::current();
        if fault::is_contained() {
            tracing::error!(
                place,
                reason,
                thread = thread.name(),
                "the work of a connection or a query panicked; it alone ends"
            );
            return;
        }
        tracing::error!(place, reason, thread = thread.name(), "a part of the server panicked; the process ends");
        std::process::exit(i32::from(exit::FAULT));
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// What the other process is to do, and how it then ends.
    const KINDS: &[(&str, u8)] = &[
        ("a thread", exit::FAULT),
        ("a task", exit::FAULT),
        ("a thread that a connection waits for", exit::FAULT),
        ("a blocking thread", exit::FAULT),
        ("the main task", exit::FAULT),
        ("a connection", exit::OK),
        ("a query", exit::OK),
        ("a task that a connection started", exit::FAULT),
    ];
    const KIND: &str = "ZERO_TEST_PANIC";
    /// Longer than a machine under load takes to end.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_panic_ends_the_process_unless_it_is_contained() {
        let program = std::env::current_exe().unwrap();
        let test = "supervision::tests::the_other_process";
        let running: Vec<_> = KINDS
            .iter()
            .map(|(kind, expected)| {
                let mut command = Command::new(&program);
                command.args(["--exact", test, "--nocapture"]).env(KIND, kind);
                (kind, *expected, command.output())
            })
            .collect();
        for (kind, expected, output) in running {
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(i32::from(expected)), "{kind}: {text}");
            assert!(text.contains("on purpose"), "{kind} is not in the log: {text}");
        }
    }

    fn fail() {
        panic!("on purpose")
    }

    /// Does nothing unless it is the other process.
    #[test]
    fn the_other_process() {
        let Ok(kind) = std::env::var(KIND) else { return };
        crate::logging::start(crate::config::Logging {
            level: tracing::Level::INFO,
            format: crate::config::LogFormat::Text,
        })
        .unwrap();
        start();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = port::Tasks::default();
            match kind.as_str() {
                "a thread" => drop(std::thread::Builder::new().name("hydration".into()).spawn(fail).unwrap()),
                "a task" => drop(tokio::spawn(async { fail() })),
                "a thread that a connection waits for" => {
                    tasks.spawn("connection", async { tokio::task::spawn_blocking(fail).await.unwrap() });
                }
                "a blocking thread" => drop(tokio::task::spawn_blocking(fail)),
                "the main task" => fail(),
                "a connection" => {
                    tasks.spawn("connection", async {
                        // Also after it has waited.
                        tokio::task::yield_now().await;
                        fail();
                    });
                    tasks.finished().await;
                    // The mark does not outlive the work.
                    assert!(!fault::is_contained());
                    return;
                }
                "a query" => {
                    assert!(fault::caught(fail).is_none());
                    return;
                }
                "a task that a connection started" => {
                    tasks.spawn("connection", async { drop(tokio::spawn(async { fail() })) });
                }
                other => unreachable!("{other}"),
            }
            tokio::time::sleep(PATIENCE).await;
        });
    }
}

//! `zero-cache`: syncs the results of ZQL queries from Postgres to many clients, live.

use std::process::ExitCode;
use std::time::Duration;

use dataplane::config::{self, Config, exit};
use dataplane::root::{self, Ending};
use dataplane::{command, logging, supervision};

/// SQLite's allocations go through it as well, so that memory of a large copy or sort returns to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For threads that still do something when everything has ended. What they have not done by then is not waited for: files and
/// databases are as after a crash at that moment, which loses nothing.
const LAST_THREADS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("backup", rest)) => return ExitCode::from(carried_out(command::backup(rest))),
        Some(("decommission", rest)) => return ExitCode::from(carried_out(command::decommission(rest))),
        Some(("permissions", rest)) => return ExitCode::from(carried_out(command::permissions(rest))),
        Some(("health", rest)) => return ExitCode::from(ended(command::health(rest))),
        _ => {}
    }
    let config = match config::from_process() {
        Ok(config) => config,
        Err(refusal) => {
            refusal.print();
            return ExitCode::from(refusal.exit_code());
        }
    };
    ExitCode::from(start(config))
}

fn carried_out(command: impl Future<Output = anyhow::Result<bool>>) -> u8 {
    use_one_tls();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return exit::ERROR;
        }
    };
    ended(runtime.block_on(command))
}

fn ended(outcome: anyhow::Result<bool>) -> u8 {
    match outcome {
        Ok(true) => exit::OK,
        Ok(false) => exit::FAULT,
        Err(error) => {
            eprintln!("{error:#}");
            exit::ERROR
        }
    }
}

/// One TLS implementation for every connection of the process; a second call would be an error and there is none.
fn use_one_tls() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
}

fn start(config: Config) -> u8 {
    if let Err(error) = logging::start(config.logging) {
        eprintln!("cannot start logging: {error}");
        return exit::ERROR;
    }
    supervision::start();
    use_one_tls();
    // Returns freed memory to the system without waiting for the next allocation.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::debug!(%error, "the allocator has no background thread");
    }
    config.announce();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return exit::ERROR;
        }
    };
    let ending = runtime.block_on(root::run(config));
    runtime.shutdown_timeout(LAST_THREADS);
    match ending {
        Ok(Ending::Stopped) => exit::OK,
        Ok(Ending::SteppedDown) => exit::STOPPED,
        Err(error) => {
            tracing::error!("{error:#}");
            exit::ERROR
        }
    }
}

//! `zero-cache-operator`: keeps the deployments that `ZeroCache` resources ask for.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use zero_cache_operator::settings::Settings;
use zero_cache_operator::{logging, run};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps the zero-cache deployments that ZeroCache resources ask for.
#[derive(Debug, Parser)]
#[command(name = "zero-cache-operator", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the definition of the ZeroCache resource, to be applied to a cluster.
    Crd,
    /// Watch ZeroCache resources and reconcile them.
    Run(Box<Settings>),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crd => {
            print!("{}", crds::manifest());
            ExitCode::SUCCESS
        }
        Command::Run(settings) => start(*settings),
    }
}

fn start(settings: Settings) -> ExitCode {
    if let Err(error) = logging::start(&settings) {
        eprintln!("cannot start logging: {error}");
        return ExitCode::FAILURE;
    }
    // One TLS implementation for every connection of the process; a second call would be an error and there is none.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    // Returns freed memory to the system without waiting for the next allocation.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::debug!(error = error.to_string(), "freed memory is returned late");
    }
    // Mostly waits: one thread carries hundreds of resources, and each more has memory of its own.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = error.to_string(), "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run::run(settings));
    // Nothing is waited for: what was under way is over, or must be.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = error.to_string(), "the operator stops");
            ExitCode::FAILURE
        }
    }
}

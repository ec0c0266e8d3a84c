//! `zero-cache-operator`: keeps the deployments that `ZeroCache` resources ask for.
//!
//! Knows nothing of the data plane but its image and its settings. The reconciler is not in this build: the program prints
//! the resource's definition, and says so when it is asked to run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    Run,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Crd => {
            print!("{}", crds::manifest());
            ExitCode::SUCCESS
        }
        Command::Run => {
            eprintln!(
                "the reconciler is not in this build; run zero-cache as a single node, see the limits in README.md"
            );
            ExitCode::FAILURE
        }
    }
}

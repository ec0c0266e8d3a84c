//! What a tenant of a shared cluster may be told of the world outside: the class of a fault, and nothing that was read from it.
//!
//! The operator connects to wherever a resource's Secret points, from its own place in the network. The words of what answers, or of
//! the attempt to reach it, would tell the resource's author about hosts that only the operator can reach. So where it is installed
//! for several tenants, every text from outside is replaced by one that depends on the fault's class alone. The log keeps the
//! original, for whoever runs the operator.

use super::{BackupFault, Fault, Observed, StoreFault};

impl Observed {
    /// Replaces every text that came from outside the cluster by that of its class.
    pub fn coarsen(&mut self) {
        let databases = &mut self.databases;
        for probe in [&mut databases.upstream, &mut databases.cvr, &mut databases.change].into_iter().flatten() {
            if let Some(fault) = &mut probe.fault {
                *fault = coarse(fault);
            }
        }
        match &mut self.store_fault {
            Some(StoreFault::NoSuchBucket(text)) => "there is no such bucket".clone_into(text),
            Some(StoreFault::AccessDenied(text)) => "the store denies access".clone_into(text),
            Some(StoreFault::Unreachable(text)) => "the store cannot be used".clone_into(text),
            None => {}
        }
        match self.nodes.as_mut().and_then(|nodes| nodes.backup_fault.as_mut()) {
            Some(BackupFault::AccessDenied(text)) => "the store denies access".clone_into(text),
            Some(BackupFault::Failing(text)) => {
                "the backup cannot be written; the replication-manager's log says why".clone_into(text);
            }
            None => {}
        }
        if let Some(Err(text)) = &mut self.release {
            "the database upstream could not be asked to let go".clone_into(text);
        }
    }
}

/// One sentence for all faults of a class.
fn coarse(fault: &Fault) -> Fault {
    let text = str::to_owned;
    match fault {
        Fault::InvalidUrl(_) => Fault::InvalidUrl(text("the value is not a connection URL")),
        Fault::Unreachable(_) => Fault::Unreachable(text("the server cannot be used")),
        Fault::LoginRefused(_) => Fault::LoginRefused(text("the server refuses the login")),
        Fault::NoDatabase(_) => Fault::NoDatabase(text("there is no such database")),
        Fault::Standby(_) => Fault::Standby(text("the server is a standby")),
        Fault::WalLevel(_) => Fault::WalLevel(text("wal_level is not logical")),
        Fault::VersionTooOld(_) => Fault::VersionTooOld(text("the server is too old")),
        Fault::NoReplicationRole(_) => Fault::NoReplicationRole(text("the role may not replicate")),
        Fault::SlotsExhausted(_) => Fault::SlotsExhausted(text("no replication slot or walsender is free")),
    }
}

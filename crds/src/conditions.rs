//! Types and reasons of conditions and events: what programs match on, and the troubleshooting page is ordered by.

/// Types of conditions.
pub mod kind {
    /// Clients are served and nothing holds the wanted state back.
    pub const READY: &str = "Ready";
    /// A rollout, reset, resize or scaling runs.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong, but clients are served.
    pub const DEGRADED: &str = "Degraded";
    pub const REPLICATION_MANAGER_READY: &str = "ReplicationManagerReady";
    pub const VIEW_SYNCERS_READY: &str = "ViewSyncersReady";
    /// The databases were asked and fit.
    pub const UPSTREAM_READY: &str = "UpstreamReady";
    pub const CONNECTION_BUDGET_SATISFIED: &str = "ConnectionBudgetSatisfied";
    pub const BACKUP_HEALTHY: &str = "BackupHealthy";
    pub const UPGRADE_IN_PROGRESS: &str = "UpgradeInProgress";
    pub const UPGRADE_STALLED: &str = "UpgradeStalled";
    pub const UPGRADE_BLOCKED: &str = "UpgradeBlocked";
    pub const RESET_IN_PROGRESS: &str = "ResetInProgress";
    pub const RESET_BLOCKED: &str = "ResetBlocked";
    pub const RECONCILIATION_PAUSED: &str = "ReconciliationPaused";
    pub const ROUTE_ACCEPTED: &str = "RouteAccepted";

    /// All types, in the order they are shown.
    pub const ALL: &[&str] = &[
        READY,
        PROGRESSING,
        DEGRADED,
        REPLICATION_MANAGER_READY,
        VIEW_SYNCERS_READY,
        UPSTREAM_READY,
        CONNECTION_BUDGET_SATISFIED,
        BACKUP_HEALTHY,
        UPGRADE_IN_PROGRESS,
        UPGRADE_STALLED,
        UPGRADE_BLOCKED,
        RESET_IN_PROGRESS,
        RESET_BLOCKED,
        RECONCILIATION_PAUSED,
        ROUTE_ACCEPTED,
    ];
}

/// Reasons of conditions.
pub mod reason {
    // Ready
    pub const ALL_REPLICAS_READY: &str = "AllReplicasReady";
    pub const REPLICATION_MANAGER_NOT_READY: &str = "ReplicationManagerNotReady";
    pub const VIEW_SYNCERS_NOT_READY: &str = "ViewSyncersNotReady";
    pub const SUSPENDED: &str = "Suspended";
    pub const INVALID_SPEC: &str = "InvalidSpec";
    pub const NAME_TAKEN: &str = "NameTaken";
    pub const DELETING: &str = "Deleting";
    // Progressing
    pub const PROVISIONING: &str = "Provisioning";
    pub const UPGRADING: &str = "Upgrading";
    pub const RESETTING: &str = "Resetting";
    pub const SCALING: &str = "Scaling";
    pub const RESIZING: &str = "Resizing";
    pub const SUSPENDING: &str = "Suspending";
    pub const RESUMING: &str = "Resuming";
    pub const IDLE: &str = "Idle";
    // Degraded
    pub const VIEW_SYNCER_CRASH_LOOPING: &str = "ViewSyncerCrashLooping";
    pub const REPLICATION_MANAGER_DOWN: &str = "ReplicationManagerDown";
    pub const STANDBY_DOWN: &str = "StandbyDown";
    pub const REPLICATION_LAG_HIGH: &str = "ReplicationLagHigh";
    pub const REPLICATION_STOPPED: &str = "ReplicationStopped";
    pub const BACKUP_STALE: &str = "BackupStale";
    pub const ROLLOUT_STALLED: &str = "RolloutStalled";
    pub const MOVING_TAG: &str = "MovingTag";
    pub const VOLUME_NOT_EXPANDABLE: &str = "VolumeNotExpandable";
    pub const CLEANUP_FAILED: &str = "CleanupFailed";
    pub const RECONCILE_FAILED: &str = "ReconcileFailed";
    pub const NONE: &str = "None";
    // ReplicationManagerReady, ViewSyncersReady
    pub const READY: &str = "Ready";
    pub const INITIAL_SYNC: &str = "InitialSync";
    pub const RESTORING: &str = "Restoring";
    pub const CRASH_LOOP: &str = "CrashLoop";
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    pub const VOLUME_PENDING: &str = "VolumePending";
    pub const STARTING: &str = "Starting";
    pub const WAITING_FOR_REPLICATION_MANAGER: &str = "WaitingForReplicationManager";
    // UpstreamReady
    pub const CHECKS_PASSED: &str = "ChecksPassed";
    pub const NOT_CHECKED: &str = "NotChecked";
    pub const SECRET_MISSING: &str = "SecretMissing";
    pub const INVALID_URL: &str = "InvalidUrl";
    pub const UNREACHABLE: &str = "Unreachable";
    pub const LOGIN_REFUSED: &str = "LoginRefused";
    pub const NO_DATABASE: &str = "NoDatabase";
    pub const STANDBY: &str = "Standby";
    pub const WAL_LEVEL_NOT_LOGICAL: &str = "WalLevelNotLogical";
    pub const VERSION_TOO_OLD: &str = "VersionTooOld";
    pub const NO_REPLICATION_ROLE: &str = "NoReplicationRole";
    pub const SLOTS_EXHAUSTED: &str = "SlotsExhausted";
    // ConnectionBudgetSatisfied
    pub const WITHIN_BUDGET: &str = "WithinBudget";
    pub const OVER_BUDGET: &str = "OverBudget";
    pub const LIMIT_UNKNOWN: &str = "LimitUnknown";
    pub const DISABLED: &str = "Disabled";
    // BackupHealthy
    pub const RECENT: &str = "Recent";
    pub const STALE: &str = "Stale";
    pub const NO_SNAPSHOT_YET: &str = "NoSnapshotYet";
    pub const ACCESS_DENIED: &str = "AccessDenied";
    pub const NO_SUCH_BUCKET: &str = "NoSuchBucket";
    pub const NOT_CONFIGURED: &str = "NotConfigured";
    // Upgrade
    pub const STEP_TIMEOUT: &str = "StepTimeout";
    pub const DOWNGRADE_NOT_ALLOWED: &str = "DowngradeNotAllowed";
    pub const VERSION_SKEW: &str = "VersionSkew";
    pub const RESET_IN_PROGRESS: &str = "ResetInProgress";
    pub const WAITING_FOR_RELEASE: &str = "WaitingForRelease";
    // Reset
    pub const PREFIX_NOT_EMPTY: &str = "PrefixNotEmpty";
    pub const GENERATION_RETIRED: &str = "GenerationRetired";
    pub const UPGRADE_IN_PROGRESS: &str = "UpgradeInProgress";
    // ReconciliationPaused
    pub const PAUSED_BY_SPEC: &str = "PausedBySpec";
    pub const NOT_PAUSED: &str = "NotPaused";
    // RouteAccepted
    pub const ACCEPTED: &str = "Accepted";
    pub const NO_ADDRESS: &str = "NoAddress";
    pub const API_MISSING: &str = "ApiMissing";
}

/// Reasons of events.
pub mod event {
    pub const UPGRADE_STARTED: &str = "UpgradeStarted";
    pub const UPGRADE_STEP_COMPLETED: &str = "UpgradeStepCompleted";
    pub const UPGRADE_COMPLETED: &str = "UpgradeCompleted";
    pub const RESET_STARTED: &str = "ResetStarted";
    pub const RESET_STEP_COMPLETED: &str = "ResetStepCompleted";
    pub const RESET_COMPLETED: &str = "ResetCompleted";
    pub const RESET_CANCELLED: &str = "ResetCancelled";
    pub const SCALED: &str = "Scaled";
    pub const VOLUME_RESIZED: &str = "VolumeResized";
    pub const GENERATION_DELETED: &str = "GenerationDeleted";
    pub const PAUSED: &str = "Paused";
    pub const RESUMED: &str = "Resumed";
    pub const CREATED: &str = "Created";
    pub const DELETION_STARTED: &str = "DeletionStarted";
    pub const RELEASED: &str = "Released";
    // Warnings
    pub const INVALID_SPEC: &str = "InvalidSpec";
    pub const NAME_TAKEN: &str = "NameTaken";
    pub const SECRET_MISSING: &str = "SecretMissing";
    pub const PREFLIGHT_FAILED: &str = "PreflightFailed";
    pub const OVER_CONNECTION_BUDGET: &str = "OverConnectionBudget";
    pub const UPGRADE_STALLED: &str = "UpgradeStalled";
    pub const RESET_BLOCKED: &str = "ResetBlocked";
    pub const UPGRADE_BLOCKED: &str = "UpgradeBlocked";
    pub const BACKUP_STALE: &str = "BackupStale";
    pub const CLEANUP_FAILED: &str = "CleanupFailed";
    pub const DEGRADED: &str = "Degraded";
    pub const NOT_RELEASED: &str = "NotReleased";
    pub const STUCK_POD_DELETED: &str = "StuckPodDeleted";
    pub const RECONCILE_FAILED: &str = "ReconcileFailed";
}

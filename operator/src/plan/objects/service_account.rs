//! The identity of the pods. It may do nothing in the cluster; clouds hang their identities on it.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::some_map;

pub(super) fn service_account(wanted: &Wanted, meta: &Meta) -> Option<ServiceAccount> {
    let given = &wanted.spec.security.service_account;
    let mut metadata = meta.shared(wanted.service_account.clone());
    metadata.annotations = some_map(&given.annotations);
    given.create.then(|| ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

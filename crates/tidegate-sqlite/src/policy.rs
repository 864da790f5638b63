//! What kinds allow, as workers declare it: read by every process's sweep.

use rusqlite::params;
use tidegate_core::id::Kind;
use tidegate_core::retry::Policy;

use crate::group::Group;
use crate::seal;
use crate::trouble::Trouble;

/// Stores the policies, each over the one before.
pub(crate) fn declare(group: &mut Group<'_>, policies: &[(Kind, Policy)]) -> Result<(), Trouble> {
    const DECLARE: &str = "-- declare: written only when it changed, so that a restart of a worker costs no commit
        insert into tide_policy (kind, policy, declared_at, seal) values (?1, ?2, ?3, ?4)
        on conflict (kind) do update
        set policy = excluded.policy, declared_at = excluded.declared_at, seal = excluded.seal
        where policy <> excluded.policy";
    for (kind, policy) in policies {
        let text = serde_json::to_string(policy).expect("a policy is plain data");
        let policy = params![kind.as_str(), text, group.now.as_millis()];
        seal::execute(&mut group.conn.prepare_cached(DECLARE)?, seal::POLICY, policy)?;
    }
    group.settings_changed();
    Ok(())
}

//! What kinds allow, as workers declare it: read by every process's sweep.

use tidegate_core::id::Kind;
use tidegate_core::retry::Policy;

use crate::group::Group;
use crate::trouble::Trouble;

/// Stores the policies, each over the one before.
pub(crate) async fn declare(group: &mut Group, policies: &[(Kind, Policy)]) -> Result<(), Trouble> {
    const DECLARE: &str = "-- declare: written only when it changed, so that a restart of a worker costs nothing
        insert into tidegate.policy as p (kind, policy, declared_at)
        select u.kind, u.policy, $3 from unnest($1::text[], $2::text[]) as u(kind, policy) order by u.kind
        on conflict (kind) do update set policy = excluded.policy, declared_at = excluded.declared_at
        where p.policy <> excluded.policy";
    // One statement cannot replace what it inserted itself: of a kind that is declared twice the last policy holds.
    let mut last: Vec<(&str, String)> = Vec::new();
    for (kind, policy) in policies {
        let text = serde_json::to_string(policy).expect("a policy is plain data");
        match last.iter_mut().find(|(known, _)| *known == kind.as_str()) {
            Some((_, known)) => *known = text,
            None => last.push((kind.as_str(), text)),
        }
    }
    let (kinds, texts): (Vec<&str>, Vec<String>) = last.into_iter().unzip();
    group.conn.execute(DECLARE, &[&kinds, &texts, &group.now.as_millis()]).await?;
    group.settings_changed();
    Ok(())
}

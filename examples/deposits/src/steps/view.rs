//! What a customer is told about a deposit: one word, read from the messages of its flow.
//!
//! "Failed" is said only when nothing was taken, or when what was taken has been given back. Everything that is not
//! known yet has a word of its own.

use serde::{Deserialize, Serialize};
use tidegate::store::Summary;
use tidegate::{Message, MessageId, State, StoreError, Tidegate};

use super::{Authorise, Capture, Credit, Refund};

/// What a customer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// It is being worked on.
    Processing,
    /// The money is in the wallet.
    Completed,
    /// Nothing was taken, or it was given back.
    Failed,
    /// The gateway's answer is missing, and a person is finding out.
    Parked,
    /// It could not be done, and a person has to look.
    Dead,
}

impl Told {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Parked => "parked",
            Self::Dead => "dead",
        }
    }

    /// Whether it never changes again, except that a person redrives it.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Dead => true,
            Self::Processing | Self::Parked => false,
        }
    }
}

/// A deposit as its customer sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The flow's id, as in the path.
    pub id: MessageId,
    /// The deposit's name.
    pub deposit: String,
    /// The word.
    pub state: Told,
    /// Why, where there is a why: `card_declined`, `account_closed`, `outcome_unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Reads a deposit; none for an id that is no deposit.
///
/// # Errors
/// `Unavailable`, `Corrupt`.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn read_flow(tide: &Tidegate, id: MessageId) -> Result<Option<View>, StoreError> {
    match tide.flow(id).await {
        Ok(flow) => Ok(view(&flow.messages)),
        Err(error) if error.kind() == tidegate::StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the messages of a flow mean; none when they are not those of a deposit.
#[must_use]
pub fn view(flow: &[Summary]) -> Option<View> {
    let root = flow.first().filter(|root| root.kind.as_str() == Authorise::KIND)?;
    let (state, code) = told(flow);
    Some(View { id: root.id, deposit: root.key.as_str().to_owned(), state, code })
}

fn told(flow: &[Summary]) -> (Told, Option<String>) {
    let of = |kind: &str| flow.iter().find(|message| message.kind.as_str() == kind);
    let credit = of(Credit::KIND);
    if credit.is_some_and(|credit| credit.state == State::Completed) {
        // The receipt may still be on its way; the money is there.
        return (Told::Completed, None);
    }
    let steps = [of(Authorise::KIND), of(Capture::KIND), credit, of(Refund::KIND)];
    let mut steps: Vec<&Summary> = steps.into_iter().flatten().collect();
    // The step that stopped the flow is the last one; a refund tells for the credit before it.
    let Some(last) = steps.pop() else { return (Told::Processing, None) };
    let code = last.code.clone();
    match last.state {
        State::Ready | State::Leased => (Told::Processing, None),
        State::Parked => (Told::Parked, code),
        State::Dead => (Told::Dead, code),
        State::Completed if last.kind.as_str() == Refund::KIND => {
            (Told::Failed, credit.and_then(|credit| credit.code.clone()))
        }
        // Its follow-up commits with it, so there is a later step; if not, nobody knows what this flow is.
        State::Completed => (Told::Processing, None),
        // Before the capture nothing was taken. After it a "never" without a refund is for a person.
        State::Failed | State::Cancelled if [Authorise::KIND, Capture::KIND].contains(&last.kind.as_str()) => {
            (Told::Failed, code.or_else(|| Some(last.state.as_str().to_owned())))
        }
        State::Failed | State::Cancelled => (Told::Dead, code),
    }
}

#[cfg(test)]
mod tests {
    use tidegate::{IdempotencyKey, Kind, QueueName, Tenant, Timestamp};

    use super::*;

    /// A message of a flow: its kind, its state and its code.
    type Step = (&'static str, State, Option<&'static str>);

    fn flow(steps: &[Step]) -> Vec<Summary> {
        (1..)
            .zip(steps)
            .map(|(id, (kind, state, code))| Summary {
                id: MessageId::from_i64(id),
                tenant: Tenant::default(),
                queue: QueueName::new(kind).unwrap(),
                kind: Kind::new(kind).unwrap(),
                key: IdempotencyKey::new("dep-1").unwrap(),
                state: *state,
                attempt: 1,
                due_at: None,
                code: code.map(str::to_owned),
                detail: None,
                enqueued_at: Timestamp::EPOCH,
                ended_at: None,
                flow: MessageId::from_i64(1),
            })
            .collect()
    }

    #[test]
    fn a_customer_is_told_failed_only_when_nothing_was_taken_or_it_was_given_back() {
        use State::{Cancelled, Completed, Dead, Failed, Leased, Parked, Ready};
        let done = |kind| (kind, Completed, None);
        let closed = ("credit", Failed, Some("account_closed"));
        let cases: Vec<(Vec<Step>, Told, Option<&str>)> = vec![
            (vec![("authorise", Ready, None)], Told::Processing, None),
            (vec![("authorise", Leased, Some("unavailable"))], Told::Processing, None),
            (vec![("authorise", Failed, Some("card_declined"))], Told::Failed, Some("card_declined")),
            (vec![("authorise", Cancelled, None)], Told::Failed, Some("cancelled")),
            (vec![("authorise", Parked, Some("outcome_unknown"))], Told::Parked, Some("outcome_unknown")),
            (
                vec![done("authorise"), ("capture", Parked, Some("outcome_unknown"))],
                Told::Parked,
                Some("outcome_unknown"),
            ),
            (vec![done("authorise"), ("capture", Dead, Some("exhausted"))], Told::Dead, Some("exhausted")),
            (vec![done("authorise"), done("capture"), ("credit", Ready, None)], Told::Processing, None),
            (vec![done("authorise"), done("capture"), done("credit"), ("notify", Dead, None)], Told::Completed, None),
            (vec![done("authorise"), done("capture"), closed, ("refund", Ready, None)], Told::Processing, None),
            (vec![done("authorise"), done("capture"), closed, ("refund", Parked, None)], Told::Parked, None),
            (vec![done("authorise"), done("capture"), closed, ("refund", Dead, None)], Told::Dead, None),
            (vec![done("authorise"), done("capture"), closed, done("refund")], Told::Failed, Some("account_closed")),
            (vec![done("authorise"), done("capture"), closed], Told::Dead, Some("account_closed")),
            (vec![done("authorise"), done("capture"), ("credit", Cancelled, None)], Told::Dead, None),
        ];
        for (steps, state, code) in cases {
            let view = view(&flow(&steps)).unwrap();
            assert_eq!((view.state, view.code.as_deref()), (state, code), "{steps:?}");
        }
    }

    #[test]
    fn a_flow_that_begins_otherwise_is_no_deposit() {
        assert_eq!(view(&flow(&[("capture", State::Ready, None)])), None);
        assert_eq!(view(&[]), None);
    }
}

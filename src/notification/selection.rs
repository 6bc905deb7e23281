//! Which rows a receipt is about, as clients and backends write it in JSON.

use serde_json::Value;
use uuid::Uuid;

use super::{ReceiptKind, Rev};

/// Which rows a receipt is about. Never touches rows of another token, nor any newer than it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The rows with these ids; ids of other inboxes select nothing.
    Ids(Vec<Uuid>),
    /// Every row up to and including this rev.
    UpTo(Rev),
    /// Every row that is committed when the receipt is.
    All,
}

impl Selection {
    /// Takes an id, a list of ids, `{ids: [...]}`, `{upTo: rev}` unless it is to mark rows unread, and `{all: true}` if it
    /// is to mark them read.
    ///
    /// # Errors
    /// Says what is wrong and where.
    pub fn parse(payload: &Value, kind: ReceiptKind) -> Result<Self, String> {
        match payload {
            Value::String(id) => Ok(Self::Ids(vec![parse_id(id).ok_or("not an id")?])),
            Value::Array(list) => ids(list),
            Value::Object(fields) => match (fields.get("ids"), fields.get("upTo"), fields.get("all")) {
                (Some(Value::Array(list)), None, None) => ids(list),
                (None, Some(rev), None) if kind != ReceiptKind::Unread => match rev.as_i64() {
                    Some(rev) if rev >= 0 => Ok(Self::UpTo(rev)),
                    _ => Err("upTo must be a rev: an integer, 0 or more".to_owned()),
                },
                (None, None, Some(Value::Bool(true))) if kind == ReceiptKind::Read => Ok(Self::All),
                _ => Err(needed(kind)),
            },
            _ => Err(needed(kind)),
        }
    }

    /// How many ids it names.
    #[must_use]
    pub fn ids(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::UpTo(_) | Self::All => 0,
        }
    }
}

fn needed(kind: ReceiptKind) -> String {
    let forms = match kind {
        ReceiptKind::Ack => "exactly one of {ids: [...]}, {upTo: rev}",
        ReceiptKind::Read => "exactly one of {ids: [...]}, {upTo: rev}, {all: true}",
        ReceiptKind::Unread => "{ids: [...]}",
    };
    format!("{forms}, an id or an array of ids is needed")
}

fn ids(list: &[Value]) -> Result<Selection, String> {
    let parsed =
        list.iter().enumerate().map(|(at, id)| id.as_str().and_then(parse_id).ok_or(format!("ids[{at}] is not an id")));
    Ok(Selection::Ids(parsed.collect::<Result<_, _>>()?))
}

fn parse_id(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "0198c0de-0000-7000-8000-000000000001";

    #[test]
    fn every_documented_form_is_taken() {
        let id = Uuid::parse_str(ID).unwrap();
        for (payload, selection) in [
            (json!(ID), Selection::Ids(vec![id])),
            (json!([ID, ID]), Selection::Ids(vec![id, id])),
            (json!({"ids": [ID]}), Selection::Ids(vec![id])),
            (json!({"upTo": 17}), Selection::UpTo(17)),
            (json!({"all": true}), Selection::All),
        ] {
            assert_eq!(Selection::parse(&payload, ReceiptKind::Read), Ok(selection));
        }
    }

    #[test]
    fn anything_else_is_refused_with_where() {
        let ack = |payload| Selection::parse(&payload, ReceiptKind::Ack);
        assert_eq!(ack(json!({"ids": [ID, 7]})), Err("ids[1] is not an id".into()));
        assert_eq!(ack(json!({"upTo": -1})), Err("upTo must be a rev: an integer, 0 or more".into()));
        for payload in [json!(null), json!({}), json!({"all": true}), json!({"ids": [ID], "upTo": 1}), json!(7)] {
            let wanted = "exactly one of {ids: [...]}, {upTo: rev}, an id or an array of ids is needed";
            assert_eq!(ack(payload), Err(wanted.into()));
        }
        for payload in [json!({"upTo": 1}), json!({"all": true})] {
            let wanted = "{ids: [...]}, an id or an array of ids is needed";
            assert_eq!(Selection::parse(&payload, ReceiptKind::Unread), Err(wanted.into()));
        }
    }
}

//! MongoDB-like queries over requests, with the meaning that ipyparallel's hub gives them: a JSON object of fields, each
//! with a value (equal) or an object of operators that must all hold.
use super::error::QueryError;
use super::requests::RequestRecord;
use crate::model::UnixTime;
use rusqlite::types::Value as SqlValue;
use serde_json::Value;
use std::cmp::Ordering;

macro_rules! fields {
    ($($field:ident $name:literal $sql:literal),* $(,)?) => {
        /// The fields of a record: ipyparallel's name, and the SQL expression of the value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field { $($field),* }
        impl Field {
            pub(super) const ALL: [Field; [$($name),*].len()] = [$(Field::$field),*];
            pub(super) fn name(self) -> &'static str { match self { $(Field::$field => $name),* } }
            pub(super) fn sql(self) -> &'static str { match self { $(Field::$field => $sql),* } }
        }
    };
}

const _: () = assert!(Field::ALL.len() == 23);

fields! {
    MsgId "msg_id" "r.msg_id",
    Header "header" "r.header",
    Metadata "metadata" "r.metadata",
    Content "content" "r.content",
    Buffers "buffers" "r.buffers",
    Submitted "submitted" "t.submitted",
    ClientUuid "client_uuid" "r.client",
    EngineUuid "engine_uuid" "r.engine_uuid",
    Started "started" "t.started",
    Completed "completed" "t.completed",
    Resubmitted "resubmitted" "r.resubmitted",
    Received "received" "r.received",
    ResultHeader "result_header" "r.result_header",
    ResultMetadata "result_metadata" "r.result_metadata",
    ResultContent "result_content" "r.result_content",
    ResultBuffers "result_buffers" "r.result_buffers",
    Queue "queue" "r.queue",
    ExecuteInput "execute_input" "r.execute_input",
    ExecuteResult "execute_result" "r.execute_result",
    Error "error" "r.error",
    Stdout "stdout" "(STDOUT)",
    Stderr "stderr" "(STDERR)",
    Label "label" "COALESCE(r.label, (SELECT label FROM map WHERE id = t.id >> 32))",
}

impl Field {
    pub(super) fn parse(name: &str) -> Result<Field, QueryError> {
        Field::ALL
            .into_iter()
            .find(|field| field.name() == name)
            .ok_or_else(|| QueryError::UnknownField(name.into(), Field::ALL.map(Field::name).join(" ")))
    }
    pub(super) fn is_buffers(self) -> bool {
        matches!(self, Field::Buffers | Field::ResultBuffers)
    }
    fn is_date(self) -> bool {
        matches!(self, Field::Submitted | Field::Started | Field::Completed | Field::Received)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    Greater,
    LessEqual,
    GreaterEqual,
    In,
    NotIn,
    All,
    Modulo,
    Exists,
    Glob,
}

impl Operator {
    const NAMES: [(&'static str, Operator); 12] = [
        ("$eq", Operator::Equal),
        ("$ne", Operator::NotEqual),
        ("$lt", Operator::Less),
        ("$gt", Operator::Greater),
        ("$lte", Operator::LessEqual),
        ("$gte", Operator::GreaterEqual),
        ("$in", Operator::In),
        ("$nin", Operator::NotIn),
        ("$all", Operator::All),
        ("$mod", Operator::Modulo),
        ("$exists", Operator::Exists),
        ("$glob", Operator::Glob),
    ];
}

struct Test {
    field: Field,
    operator: Operator,
    value: Value,
}

pub(super) struct Filter(Vec<Test>);

impl Filter {
    pub(super) fn parse(query: &Value) -> Result<Filter, QueryError> {
        let Value::Object(query) = query else {
            return Err(QueryError::NoObject(query.clone()));
        };
        let mut tests = Vec::new();
        for (name, check) in query {
            let field = Field::parse(name)?;
            if field.is_buffers() {
                return Err(QueryError::Unsearchable(field.name()));
            }
            match check {
                Value::Object(operators) => {
                    for (name, value) in operators {
                        let known = Operator::NAMES.iter().find(|(known, _)| known == name);
                        let &(_, operator) = known.ok_or_else(|| {
                            let all = Operator::NAMES.map(|(name, _)| name).join(" ");
                            QueryError::UnknownOperator(name.clone(), all)
                        })?;
                        tests.push(Test::new(field, operator, value)?);
                    }
                }
                value => tests.push(Test::new(field, Operator::Equal, value)?),
            }
        }
        Ok(Filter(tests))
    }

    pub(super) fn fields(&self) -> Vec<Field> {
        self.0.iter().map(|test| test.field).collect()
    }

    pub(super) fn matches(&self, record: &RequestRecord) -> bool {
        self.0.iter().all(|test| test.holds(&record.value(test.field)))
    }

    /// A condition in SQL that every match meets, for the most frequent tests.
    pub(super) fn narrow(&self) -> (String, Vec<SqlValue>) {
        let mut wheres = vec!["1"];
        let mut values = Vec::new();
        for Test { field, operator, value } in &self.0 {
            let list = match (operator, value) {
                (Operator::Equal, Value::String(_)) => Value::Array(vec![value.clone()]),
                (Operator::In, Value::Array(_)) => value.clone(),
                (Operator::NotEqual, Value::Null) if *field == Field::Completed => {
                    wheres.push("t.completed IS NOT NULL");
                    continue;
                }
                (Operator::Equal, Value::Null) if *field == Field::Completed => {
                    wheres.push("t.completed IS NULL");
                    continue;
                }
                _ => continue,
            };
            wheres.push(match field {
                Field::MsgId => "r.msg_id IN (SELECT value FROM json_each(?))",
                Field::ClientUuid => "r.client IN (SELECT value FROM json_each(?))",
                _ => continue,
            });
            values.push(list.to_string().into());
        }
        (wheres.join(" AND "), values)
    }
}

impl Test {
    fn new(field: Field, operator: Operator, value: &Value) -> Result<Test, QueryError> {
        let expected = |what: &str| {
            let name = Operator::NAMES.iter().find(|(_, known)| *known == operator);
            Err(QueryError::Operand {
                operator: name.map_or("", |(name, _)| name),
                field: field.name(),
                expected: what.into(),
                value: value.clone(),
            })
        };
        match (operator, value) {
            (Operator::In | Operator::NotIn | Operator::All, Value::Array(_)) => {}
            // Python's `in`: part of a text.
            (Operator::In | Operator::NotIn, Value::String(_)) => {}
            (Operator::In | Operator::NotIn | Operator::All, _) => return expected("a list"),
            (Operator::Modulo, Value::Array(pair)) => match pair.as_slice() {
                [divisor, rest] if divisor.as_f64().is_some_and(|d| d != 0.0) && rest.is_number() => {}
                _ => return expected("a divisor that is not 0 and a remainder"),
            },
            (Operator::Modulo, _) => return expected("a divisor and a remainder"),
            (Operator::Glob, Value::String(pattern)) => {
                if let Err(error) = glob::Pattern::new(pattern) {
                    return expected(&format!("a pattern ({error})"));
                }
            }
            (Operator::Glob, _) => return expected("a pattern"),
            _ => {}
        }
        let value = if field.is_date() { dates(value) } else { value.clone() };
        Ok(Test { field, operator, value })
    }

    fn holds(&self, found: &Value) -> bool {
        let expected = &self.value;
        let ordered = |test: fn(Ordering) -> bool| compare(found, expected).is_some_and(test);
        match self.operator {
            Operator::Equal => equal(found, expected),
            Operator::NotEqual => !equal(found, expected),
            Operator::Less => ordered(Ordering::is_lt),
            Operator::Greater => ordered(Ordering::is_gt),
            Operator::LessEqual => ordered(Ordering::is_le),
            Operator::GreaterEqual => ordered(Ordering::is_ge),
            Operator::In => contains(expected, found),
            Operator::NotIn => !contains(expected, found),
            // As in the hub: the value is in every one of these lists (or texts).
            Operator::All => matches!(expected, Value::Array(lists) if lists.iter().all(|one| contains(one, found))),
            Operator::Modulo => match (
                found.as_f64(),
                expected.get(0).and_then(Value::as_f64),
                expected.get(1).and_then(Value::as_f64),
            ) {
                // Python's remainder has the divisor's sign.
                (Some(n), Some(divisor), Some(rest)) => n - divisor * (n / divisor).floor() == rest,
                _ => false,
            },
            Operator::Exists => truthy(expected) != found.is_null(),
            Operator::Glob => match (found, expected) {
                (Value::String(text), Value::String(pattern)) => glob::Pattern::new(pattern).is_ok_and(|p| p.matches(text)),
                _ => false,
            },
        }
    }
}

/// Dates in the format of records, so that they compare as texts.
fn dates(value: &Value) -> Value {
    match value {
        Value::String(text) => UnixTime::from_iso(text).map_or_else(|| value.clone(), |time| time.to_iso().into()),
        Value::Array(list) => list.iter().map(dates).collect(),
        other => other.clone(),
    }
}

/// Python's `==`: 1 equals 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// None for what has no order: nulls, lists, values of different types.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Python's `found in container`.
fn contains(container: &Value, found: &Value) -> bool {
    match (container, found) {
        (Value::Array(list), found) => list.iter().any(|one| equal(one, found)),
        (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
        (Value::Object(fields), Value::String(key)) => fields.contains_key(key),
        _ => false,
    }
}

/// Python's `bool(value)`.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

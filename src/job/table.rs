//! A TOML table read key by key, with the place of every key and value, so that each fault can be shown.

use crate::job::error::JobError;
use crate::job::snippet::Excerpt;
use crate::text::suggest;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text being read; turns a byte span of it into an [`Excerpt`].
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

impl Document<'_> {
    pub fn at(&self, span: Range<usize>) -> Box<Excerpt> {
        self.at_with(span, None)
    }

    pub fn at_with(&self, span: Range<usize>, help: Option<String>) -> Box<Excerpt> {
        Box::new(Excerpt::new(self.path, self.text, span, help))
    }
}

/// One table of the document. Reading a key says what may be there; [`Table::only`] refuses all else.
#[derive(Clone)]
pub(super) struct Table<'a> {
    pub document: Document<'a>,
    entries: &'a DeTable<'a>,
    /// How messages call it: `[tensors.train]`.
    pub name: String,
    /// What a message about something missing points at.
    pub span: Range<usize>,
}

/// A value with the key it stands under.
#[derive(Clone)]
pub(super) struct Value<'a> {
    document: Document<'a>,
    pub key: String,
    pub key_span: Range<usize>,
    pub span: Range<usize>,
    inner: &'a DeValue<'a>,
}

impl<'a> Table<'a> {
    pub fn root(document: Document<'a>, entries: &'a DeTable<'a>) -> Self {
        Table { document, entries, name: "the job file".to_owned(), span: 0..0 }
    }

    /// Refuses the first key (in the order of the file) that is not in `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), JobError> {
        let unknown = self.entries().into_iter().find(|value| !known.contains(&value.key.as_str()));
        let Some(Value { key, key_span, .. }) = unknown else {
            return Ok(());
        };
        let help = suggest(&key, known.iter().copied(), "known keys");
        Err(JobError::UnknownKey { at: self.document.at_with(key_span, help), key, table: self.name.clone() })
    }

    /// All entries in the order of the file.
    pub fn entries(&self) -> Vec<Value<'a>> {
        let mut entries: Vec<_> =
            self.entries.iter().map(|(key, value)| self.value(key.get_ref(), key.span(), value)).collect();
        entries.sort_by_key(|value| value.key_span.start);
        entries
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let (key, value) = self.entries.get_key_value(key)?;
        Some(self.value(key.get_ref(), key.span(), value))
    }

    pub fn require(&self, key: &str, example: &str) -> Result<Value<'a>, JobError> {
        self.get(key).ok_or_else(|| JobError::MissingKey {
            at: self.document.at_with(self.span.clone(), Some(format!("add: {key} = {example}"))),
            key: key.to_owned(),
            table: self.name.clone(),
        })
    }

    fn value(&self, key: &str, key_span: Range<usize>, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        Value { document: self.document, key: key.to_owned(), key_span, span: value.span(), inner: value.get_ref() }
    }
}

impl<'a> Value<'a> {
    /// Text that is not empty.
    pub fn string(&self) -> Result<&'a str, JobError> {
        let DeValue::String(text) = self.inner else {
            return Err(self.wrong_type("a string"));
        };
        if text.is_empty() {
            return Err(self.bad("must not be empty", None));
        }
        Ok(text)
    }

    /// Byte offset in the document of the text of a string value, which is then found there verbatim;
    /// `None` when escapes make the two differ.
    pub fn text_offset(&self, text: &str) -> Option<usize> {
        let raw = self.document.text.get(self.span.clone())?;
        Some(self.span.start + raw.find(text)?)
    }

    /// A whole number, 0 or more.
    pub fn count(&self) -> Result<u64, JobError> {
        let DeValue::Integer(integer) = self.inner else {
            return Err(self.wrong_type("a whole number"));
        };
        u64::from_str_radix(integer.as_str().trim_start_matches('+'), integer.radix())
            .map_err(|_| self.bad(format!("{integer} is not a whole number from 0 to 2^64"), None))
    }

    /// The text of a number, its radix and whether it is written as an integer.
    pub fn number(&self) -> Result<Number<'a>, JobError> {
        match self.inner {
            DeValue::Integer(integer) => Ok(Number::Integer(integer.as_str(), integer.radix())),
            DeValue::Float(float) => Ok(Number::Float(float.as_str())),
            _ => Err(self.wrong_type("a number")),
        }
    }

    /// A size such as `"64MiB"`, above 0.
    pub fn bytes(&self) -> Result<u64, JobError> {
        const HELP: &str = "a number and a unit, such as \"64MiB\" or \"2GiB\"";
        let DeValue::String(text) = self.inner else {
            return Err(self.wrong_type("a size in quotes, such as \"64MiB\""));
        };
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
            Ok(_) => Err(self.bad("must be more than 0", None)),
            Err(_) => Err(self.bad(format!("'{text}' is no size"), Some(HELP.into()))),
        }
    }

    /// A duration such as `"30s"`, above 0.
    pub fn duration(&self) -> Result<std::time::Duration, JobError> {
        const HELP: &str = "a number and a unit, such as \"30s\", \"1m 30s\" or \"500ms\"";
        let DeValue::String(text) = self.inner else {
            return Err(self.wrong_type("a duration in quotes, such as \"30s\""));
        };
        match humantime::parse_duration(text) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            Ok(_) => Err(self.bad("must be more than 0", None)),
            Err(_) => Err(self.bad(format!("'{text}' is no duration"), Some(HELP.into()))),
        }
    }

    /// The items of an array, each under this value's key.
    pub fn items(&self, expected: &'static str) -> Result<Vec<Value<'a>>, JobError> {
        let DeValue::Array(items) = self.inner else {
            return Err(self.wrong_type(expected));
        };
        Ok(items.iter().map(|item| Value { span: item.span(), inner: item.get_ref(), ..self.clone() }).collect())
    }

    pub fn is_table(&self) -> bool {
        matches!(self.inner, DeValue::Table(_))
    }

    /// This value as a table that messages call `name`.
    pub fn table(&self, name: String) -> Result<Table<'a>, JobError> {
        let DeValue::Table(entries) = self.inner else {
            return Err(self.wrong_type("a table"));
        };
        Ok(Table { document: self.document, entries, name, span: self.span.clone() })
    }

    pub fn bad(&self, reason: impl Display, help: Option<String>) -> JobError {
        JobError::BadValue {
            at: self.document.at_with(self.span.clone(), help),
            key: self.key.clone(),
            reason: reason.to_string(),
        }
    }

    fn wrong_type(&self, expected: &'static str) -> JobError {
        JobError::WrongType {
            at: self.document.at(self.span.clone()),
            key: self.key.clone(),
            expected,
            found: match self.inner {
                DeValue::String(_) => "a string",
                DeValue::Integer(_) => "a whole number",
                DeValue::Float(_) => "a number with a fraction",
                DeValue::Boolean(_) => "true or false",
                DeValue::Datetime(_) => "a date or time",
                DeValue::Array(_) => "an array",
                DeValue::Table(_) => "a table",
            },
        }
    }
}

/// A TOML number as text, so that no digit is lost before the dtype is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number<'a> {
    Integer(&'a str, u32),
    Float(&'a str),
}

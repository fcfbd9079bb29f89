//! Index notation: `images[n,h,w], weights[h,w,k] -> logits[n,k]`. The grammar is in `docs/job-file.md`.
//!
//! Parses text into operands with the place of each word; knows nothing of TOML, tensors or files.

use crate::tensor::MAX_RANK;
use std::fmt;
use std::ops::Range;

/// One line of index notation, parsed. Duplicate indices within an operand do not occur.
#[derive(Clone, Debug)]
pub struct Notation {
    pub inputs: Vec<Operand>,
    pub outputs: Vec<Operand>,
    /// As written in the job file.
    pub text: String,
}

/// A tensor with one index per dimension, outermost first. Displays as `images[n,h,w]`.
#[derive(Clone, Debug)]
pub struct Operand {
    pub tensor: String,
    pub indices: Vec<Index>,
    /// 1-based column of the tensor's name in its line of the job file.
    pub column: usize,
    /// Bytes of the tensor's name: in the notation as parsed, in the job file once the job is read.
    pub(crate) span: Range<usize>,
}

/// One index of an operand.
#[derive(Clone, Debug)]
pub struct Index {
    pub name: String,
    /// Consecutive elements of the dimension for each value of the index, at least 1: 2 in `2*y`.
    pub scale: u64,
    /// Neighbouring elements needed on each side: 1 in `y~1`.
    pub halo: u64,
    pub(crate) span: Range<usize>,
}

impl Operand {
    /// The dimension that `index` names here.
    pub fn dim_of(&self, index: &str) -> Option<usize> {
        self.indices.iter().position(|i| i.name == index)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.tensor)?;
        for (position, index) in self.indices.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{index}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scale > 1 {
            write!(f, "{}*", self.scale)?;
        }
        f.write_str(&self.name)?;
        if self.halo > 0 {
            write!(f, "~{}", self.halo)?;
        }
        Ok(())
    }
}

/// Why text is not notation: the bytes at fault, what is wrong, and a way out.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub span: Range<usize>,
    pub reason: String,
    pub help: Option<String>,
}

/// Whether `name` can be written as a tensor in the notation.
pub(super) fn is_tensor_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether `name` can be written as an index in the notation.
pub(super) fn is_index_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Parses `text`. Spans count from its first byte; columns are left at 1.
pub(super) fn parse(text: &str) -> Result<Notation, Fault> {
    let mut parser = Parser { text, at: 0 };
    let inputs = parser.operands()?;
    if !parser.eat("->") {
        return Err(parser.expected("',' or '->'", Some(ARROW)));
    }
    let outputs = parser.operands()?;
    parser.skip_blanks();
    if parser.at < text.len() {
        return Err(parser.expected("',' or the end", None));
    }
    if outputs.is_empty() {
        return Err(parser.expected("an output tensor after '->'", Some(ARROW)));
    }
    Ok(Notation { inputs, outputs, text: text.to_owned() })
}

const ARROW: &str = "inputs -> outputs, as in 'a[i,k], b[k,j] -> c[i,j]'";

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_blanks();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// The word (letters, digits, `_`) that comes next; empty when none does.
    fn word(&mut self) -> (&'a str, Range<usize>) {
        self.skip_blanks();
        let rest = self.rest();
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let span = self.at..self.at + length;
        self.at = span.end;
        (&self.text[span.clone()], span)
    }

    fn expected(&mut self, what: &str, help: Option<&str>) -> Fault {
        self.skip_blanks();
        let found = self.rest().chars().next();
        let width = found.map_or(0, char::len_utf8);
        let found = found.map_or("the end".to_owned(), |c| format!("'{c}'"));
        Fault {
            span: self.at..self.at + width,
            reason: format!("expected {what}, found {found}"),
            help: help.map(str::to_owned),
        }
    }

    /// Operands up to `->` or the end: none, or some separated by commas.
    fn operands(&mut self) -> Result<Vec<Operand>, Fault> {
        let mut operands = Vec::new();
        self.skip_blanks();
        if self.rest().is_empty() || self.rest().starts_with("->") {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand()?);
            if !self.eat(",") {
                return Ok(operands);
            }
        }
    }

    fn operand(&mut self) -> Result<Operand, Fault> {
        let (name, span) = self.word();
        if name.is_empty() {
            return Err(self.expected("a tensor", None));
        }
        if !is_tensor_name(name) {
            return Err(Fault {
                span,
                reason: format!("'{name}' is no tensor name"),
                help: Some("ASCII letters, digits and '_', not starting with a digit".into()),
            });
        }
        if !self.eat("[") {
            let help = format!("a scalar is written '{name}[]'");
            return Err(self.expected(&format!("'[' after tensor '{name}'"), Some(&help)));
        }
        let mut operand = Operand { tensor: name.to_owned(), indices: Vec::new(), column: 1, span };
        if self.eat("]") {
            return Ok(operand);
        }
        loop {
            let index = self.index()?;
            operand.admit(index)?;
            if self.eat("]") {
                return Ok(operand);
            }
            if !self.eat(",") {
                return Err(self.expected("',' or ']'", None));
            }
        }
    }

    fn index(&mut self) -> Result<Index, Fault> {
        let (mut name, mut span) = self.word();
        let mut scale = 1;
        let first = name;
        if first.starts_with(|c: char| c.is_ascii_digit()) && self.eat("*") {
            scale = first.parse().ok().filter(|scale| *scale > 0).ok_or_else(|| Fault {
                span: span.clone(),
                reason: format!("'{first}' is no multiple"),
                help: Some("a whole number from 1 on, as in '2*y'".into()),
            })?;
            let word = self.word();
            name = word.0;
            span.end = word.1.end;
        }
        if name.is_empty() {
            return Err(self.expected("an index", None));
        }
        if !is_index_name(name) {
            return Err(Fault {
                span,
                reason: format!("'{name}' is no index"),
                help: Some("a lower-case ASCII letter, then lower-case letters, digits or '_'".into()),
            });
        }
        if self.eat("*") {
            return Err(Fault {
                span,
                reason: format!("a multiple stands before its index, not after '{name}'"),
                help: Some(format!("'2*{name}' for two elements of the dimension each")),
            });
        }
        let mut halo = 0;
        if self.eat("~") {
            let (digits, digits_span) = self.word();
            if digits.is_empty() {
                return Err(self.expected(&format!("a halo width after '{name}~'"), None));
            }
            halo = digits.parse().map_err(|_| Fault {
                span: digits_span.clone(),
                reason: format!("expected a halo width after '{name}~', found '{digits}'"),
                help: Some(format!("'{name}~1' for one neighbour on each side")),
            })?;
            span.end = digits_span.end;
        }
        Ok(Index { name: name.to_owned(), scale, halo, span })
    }
}

impl Operand {
    fn admit(&mut self, index: Index) -> Result<(), Fault> {
        if self.dim_of(&index.name).is_some() {
            return Err(Fault {
                reason: format!("index '{}' is twice in '{}'", index.name, self.tensor),
                help: Some("one letter per dimension; a diagonal is not supported".into()),
                span: index.span,
            });
        }
        if self.indices.len() == MAX_RANK {
            return Err(Fault {
                reason: format!("'{}' has more than {MAX_RANK} dimensions", self.tensor),
                help: None,
                span: index.span,
            });
        }
        self.indices.push(index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(operands: &[Operand]) -> Vec<String> {
        operands.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_operands_halos_scalars_and_blanks() {
        let n = parse(" x[y~2, x_1] ,k[]\n -> s[],out[y,x_1]").unwrap();
        assert_eq!(shown(&n.inputs), ["x[y~2,x_1]", "k[]"]);
        assert_eq!(shown(&n.outputs), ["s[]", "out[y,x_1]"]);
        assert_eq!(n.inputs[0].indices[0].halo, 2);
        let n = parse("u[2*y~1, 3 * x] -> v[1*y,x]").unwrap();
        assert_eq!((shown(&n.inputs), shown(&n.outputs)), (vec!["u[2*y~1,3*x]".to_owned()], vec!["v[y,x]".to_owned()]));
        assert_eq!((n.inputs[0].indices[0].scale, n.inputs[0].indices[0].halo), (2, 1));
        assert_eq!((n.inputs[0].indices[0].span.clone(), n.inputs[0].indices[1].span.clone()), (2..7, 9..14));
        let n = parse(" x[y~2, x_1] ,k[]\n -> s[],out[y,x_1]").unwrap();
        assert_eq!(n.inputs[0].indices[0].span, 3..6);
        assert_eq!(n.inputs[1].span, 14..15);
        assert!(parse("-> c[i]").unwrap().inputs.is_empty());
    }

    #[test]
    fn faults_name_the_column_and_both_sides() {
        let fault = |text| {
            let fault = parse(text).unwrap_err();
            (fault.span.start, fault.reason)
        };
        let want = |at: usize, reason: &str| (at, reason.to_owned());
        assert_eq!(fault(""), want(0, "expected ',' or '->', found the end"));
        assert_eq!(fault("a[i]"), want(4, "expected ',' or '->', found the end"));
        assert_eq!(fault("a[i] ->"), want(7, "expected an output tensor after '->', found the end"));
        assert_eq!(fault("a[i], -> b[i]"), want(6, "expected a tensor, found '-'"));
        assert_eq!(fault("a -> b[i]"), want(2, "expected '[' after tensor 'a', found '-'"));
        assert_eq!(fault("a[i -> b[i]"), want(4, "expected ',' or ']', found '-'"));
        assert_eq!(fault("a[i,] -> b[i]"), want(4, "expected an index, found ']'"));
        assert_eq!(fault("a[I] -> b[i]"), want(2, "'I' is no index"));
        assert_eq!(fault("a[i,j,i] -> b[i]"), want(6, "index 'i' is twice in 'a'"));
        assert_eq!(fault("a[0*i] -> b[i]"), want(2, "'0' is no multiple"));
        assert_eq!(fault("a[99999999999999999999*i] -> b[i]"), want(2, "'99999999999999999999' is no multiple"));
        assert_eq!(fault("a[i*2] -> b[i]"), want(2, "a multiple stands before its index, not after 'i'"));
        assert_eq!(fault("a[2*] -> b[i]"), want(4, "expected an index, found ']'"));
        assert_eq!(fault("a[2*i,i] -> b[i]"), want(6, "index 'i' is twice in 'a'"));
        assert_eq!(fault("a[i~] -> b[i]"), want(4, "expected a halo width after 'i~', found ']'"));
        assert_eq!(fault("a[i] -> b[i] c"), want(13, "expected ',' or the end, found 'c'"));
        assert_eq!(fault("a[a,b,c,d,e,f,g,h,i] -> b[i]"), want(18, "'a' has more than 8 dimensions"));
        assert_eq!(fault("ä[i] -> b[i]"), want(0, "'ä' is no tensor name"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_points_into_itself(text in "[a-c\\[\\],~*>0-9ü -]{0,30}") {
            if let Err(fault) = parse(&text) {
                prop_assert!(text.get(fault.span.clone()).is_some(), "{fault:?}");
            }
        }

        #[test]
        fn what_is_shown_parses_to_the_same(
            operands in proptest::collection::vec(("[A-Za-z_][a-z0-9]{0,3}", "[a-z]{0,8}", 0u64..3, 1u64..4), 1..5)
        ) {
            let text: Vec<String> = operands
                .iter()
                .map(|(name, letters, halo, scale)| {
                    let mut letters: Vec<char> = letters.chars().collect();
                    letters.sort_unstable();
                    letters.dedup();
                    let before = if *scale > 1 { format!("{scale}*") } else { String::new() };
                    let after = if *halo > 0 { format!("~{halo}") } else { String::new() };
                    let indices: Vec<String> = letters.iter().map(|l| format!("{before}{l}{after}")).collect();
                    format!("{name}[{}]", indices.join(","))
                })
                .collect();
            let parsed = parse(&format!("{} -> {}", text.join(", "), text.join(" , "))).unwrap();
            prop_assert_eq!(&shown(&parsed.inputs), &text);
            prop_assert_eq!(&shown(&parsed.outputs), &text);
        }
    }
}

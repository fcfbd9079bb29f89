//! Index notation: `images[n,h,w], weights[h,w,k] -> logits[n,k]`.
//!
//! Grammar: `operands -> operands`; operands are `name[indices]` separated by commas; indices are names, separated by
//! commas, each with an optional halo `~WIDTH`; a scalar is `name[]`. Spaces mean nothing.

use std::fmt;

/// One index of an operand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Index {
    pub name: String,
    /// How many neighbours on each side the kernel reads along this index.
    pub halo: u64,
}

/// A tensor with its indices, as named in the notation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operand {
    pub tensor: String,
    pub indices: Vec<Index>,
    /// Byte offset in the notation's text.
    pub at: usize,
}

/// What a stage reads and writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notation {
    pub inputs: Vec<Operand>,
    pub outputs: Vec<Operand>,
    pub text: String,
}

/// Why a text is no index notation; `at` is the byte offset in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotationError {
    pub at: usize,
    pub message: String,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.tensor)?;
        for (position, index) in self.indices.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            f.write_str(&index.name)?;
            if index.halo > 0 {
                write!(f, "~{}", index.halo)?;
            }
        }
        f.write_str("]")
    }
}

impl Notation {
    /// Inputs, then outputs: the order in which a kernel gets them.
    pub fn operands(&self) -> impl Iterator<Item = &Operand> {
        self.inputs.iter().chain(&self.outputs)
    }

    /// Parses a line of notation.
    pub fn parse(text: &str) -> Result<Notation, NotationError> {
        let mut parser = Parser { text, at: 0 };
        let inputs = parser.operands()?;
        parser.expect("->", "'->' between what is read and what is written")?;
        let outputs = parser.operands()?;
        parser.skip_spaces();
        if parser.at < text.len() {
            return Err(parser.error("nothing more after the outputs"));
        }
        let notation = Notation { inputs, outputs, text: text.to_owned() };
        notation.check()?;
        Ok(notation)
    }

    fn check(&self) -> Result<(), NotationError> {
        let operands: Vec<&Operand> = self.operands().collect();
        for (position, operand) in operands.iter().enumerate() {
            let at = operand.at;
            if operands[..position].iter().any(|other| other.tensor == operand.tensor) {
                let message = format!("tensor '{}' appears twice; a stage names each tensor once", operand.tensor);
                return Err(NotationError { at, message });
            }
            for (i, index) in operand.indices.iter().enumerate() {
                if operand.indices[..i].iter().any(|other| other.name == index.name) {
                    let message = format!("index '{}' appears twice in {operand}", index.name);
                    return Err(NotationError { at, message });
                }
                if index.halo > 0 {
                    let message = format!(
                        "the halo '{}~{}' in {operand} is not supported by this version: kernels get their own tile only",
                        index.name, index.halo
                    );
                    return Err(NotationError { at, message });
                }
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_spaces(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str, what: &str) -> Result<(), NotationError> {
        if self.take(token) { Ok(()) } else { Err(self.error(what)) }
    }

    fn error(&mut self, expected: &str) -> NotationError {
        self.skip_spaces();
        let found = match self.rest().chars().next() {
            Some(c) => format!("'{c}'"),
            None => "the end".to_owned(),
        };
        NotationError { at: self.at, message: format!("expected {expected}, found {found}") }
    }

    fn name(&mut self, what: &str) -> Result<String, NotationError> {
        self.skip_spaces();
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let length = self.rest().find(|c: char| !(is_first(c) || c.is_ascii_digit())).unwrap_or(self.rest().len());
        if length == 0 || !self.rest().starts_with(is_first) {
            return Err(self.error(what));
        }
        let name = self.rest()[..length].to_owned();
        self.at += length;
        Ok(name)
    }

    fn operands(&mut self) -> Result<Vec<Operand>, NotationError> {
        let mut operands = vec![self.operand()?];
        while self.take(",") {
            operands.push(self.operand()?);
        }
        Ok(operands)
    }

    fn operand(&mut self) -> Result<Operand, NotationError> {
        self.skip_spaces();
        let at = self.at;
        let tensor = self.name("the name of a tensor")?;
        self.expect("[", "'[' and the tensor's indices")?;
        let mut indices = Vec::new();
        if !self.take("]") {
            loop {
                indices.push(self.index()?);
                if self.take("]") {
                    break;
                }
                self.expect(",", "',' or ']'")?;
            }
        }
        Ok(Operand { tensor, indices, at })
    }

    fn index(&mut self) -> Result<Index, NotationError> {
        let name = self.name("the name of an index")?;
        if !self.take("~") {
            return Ok(Index { name, halo: 0 });
        }
        self.skip_spaces();
        let digits = self.rest().find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest().len());
        let halo = self.rest()[..digits].parse().map_err(|_| self.error("the width of the halo"))?;
        self.at += digits;
        Ok(Index { name, halo })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let notation = Notation::parse(" images[n, h,w],k[] ->logits[n]").unwrap();
        let printed: Vec<String> = notation.operands().map(ToString::to_string).collect();
        assert_eq!(printed, ["images[n,h,w]", "k[]", "logits[n]"]);
        assert_eq!((notation.inputs.len(), notation.outputs[0].at), (2, 22));
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = |text| {
            let error = Notation::parse(text).unwrap_err();
            format!("{}: {}", error.at, error.message)
        };
        assert_eq!(error("a[n] b[n] -> c[n]"), "5: expected '->' between what is read and what is written, found 'b'");
        assert_eq!(error("a[n -> c[n]"), "4: expected ',' or ']', found '-'");
        assert_eq!(error("a[n] -> "), "8: expected the name of a tensor, found the end");
        assert_eq!(error("a[n] -> b[n] x"), "13: expected nothing more after the outputs, found 'x'");
        assert_eq!(error("a[n,n] -> b[n]"), "0: index 'n' appears twice in a[n,n]");
        assert!(error("a[n] -> a[n]").contains("appears twice"));
        assert!(error("u[y~1] -> v[y]").contains("halo 'y~1'"));
        assert!(error("u[y~] -> v[y]").contains("width of the halo"));
    }
}

//! A self-contained page: headings, sentences, tables and charts.

use std::fmt::{Display, Write};

use bytesize::ByteSize;

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;max-width:800px;margin:1.5em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:1.6em 0 .4em;border-bottom:1px solid #ddd}
p{margin:.3em 0}.light{color:#666}
table{border-collapse:collapse;width:100%;font-size:.88em;margin-top:.6em}
th,td{text-align:right;padding:.15em .4em;border-bottom:1px solid #eee;vertical-align:top}\
.text td{overflow-wrap:anywhere}td{white-space:nowrap}.text td,td:first-child{white-space:normal}
th{font-weight:600}th:first-child,td:first-child{text-align:left}.text th,.text td{text-align:left}
svg{width:100%;height:auto}svg text{font-family:system-ui,sans-serif}
.key{font-size:.9em}.key span{margin-right:.7em;white-space:nowrap}.key i{display:inline-block;width:.9em;height:.9em;margin-right:.3em;vertical-align:-.1em}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}svg,tr{break-inside:avoid}*{print-color-adjust:exact}}";

/// A page under construction. All text is escaped.
pub(crate) struct Page(String);

impl Page {
    pub fn new(title: &str) -> Page {
        let title = escape(title);
        Page(format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <meta name=\"viewport\" content=\"width=device-width\"><style>\n{STYLE}\n</style></head>\n\
             <body>\n<h1>{title}</h1>\n"
        ))
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("</body></html>\n");
        self.0
    }

    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.0, "<h2>{}</h2>", escape(text));
    }

    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.0, "<p>{}</p>", escape(text));
    }

    /// An explanation, in a lighter colour.
    pub fn light(&mut self, text: &str) {
        let _ = writeln!(self.0, "<p class=\"light\">{}</p>", escape(text));
    }

    /// A chart from [`charts`](super::charts).
    pub fn chart(&mut self, chart: &str) {
        self.0.push_str(chart);
    }

    /// A table of numbers with a text column first.
    pub fn numbers(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.table("", head, rows);
    }

    pub fn words(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.table("text", head, rows);
    }

    fn table(&mut self, class: &str, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let _ = writeln!(self.0, "<table class=\"{class}\">");
        if !head.is_empty() {
            let _ = writeln!(self.0, "<tr>{}</tr>", cells("th", &mut head.iter().copied()));
        }
        for row in rows {
            let _ = writeln!(self.0, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
        }
        self.0.push_str("</table>\n");
    }
}

pub(super) fn escape(text: &(impl Display + ?Sized)) -> String {
    let text = text.to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Formats a number of bytes.
pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

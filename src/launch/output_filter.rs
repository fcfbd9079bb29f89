//! A filter for messages of Open MPI's launcher and ranks that carry no information in a run that survives failures.

/// Lines printed when a rank has failed, and when the launcher does what it was asked to do.
const LINES: [&str; 4] = ["PMIX ERROR: ", "Forwarding signal ", "help-mpi-btl-tcp.txt", "orte_base_help_aggregate"];
/// Messages between two dashed lines, printed when a rank communicates with one that is gone, perhaps because it was
/// finished.
const BOXES: [&str; 2] =
    ["Open MPI failed to TCP connect to a peer", "An MPI communication peer process has unexpectedly"];

/// Passes on the output line by line, without noise.
#[derive(Debug, Default)]
pub(crate) struct OutputFilter {
    /// A dashed line that is held back until the next line shows whether it starts a noisy box.
    dashes: Vec<u8>,
    in_box: bool,
}

impl OutputFilter {
    /// Takes a line without its end; returns the text to print.
    pub fn push(&mut self, mut line: Vec<u8>) -> Vec<u8> {
        let is_dashed = line.len() > 40 && line.iter().all(|byte| *byte == b'-');
        line.push(b'\n');
        if self.in_box {
            self.in_box = !is_dashed;
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&line);
        if LINES.iter().any(|noise| text.contains(noise)) {
            return Vec::new();
        }
        let mut passed = std::mem::take(&mut self.dashes);
        if !passed.is_empty() && BOXES.iter().any(|noise| text.contains(noise)) {
            self.in_box = true;
            return Vec::new();
        }
        if is_dashed {
            self.dashes = line;
        } else {
            passed.append(&mut line);
        }
        passed
    }

    /// Returns the text to print at the end of the output.
    pub fn finish(self) -> Vec<u8> {
        self.dashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_noise_is_left_out() {
        let rule = "-".repeat(74);
        let noise = format!("{rule}\nWARNING: {} MPI process.  This\nshould not happen.\n\n{rule}\n", BOXES[0]);
        let other = format!("{rule}\nORTE was unable to start\n{rule}\n");
        let output = format!("a\n{noise}{noise}{other}{noise}--\nmpirun: Forwarding signal 10 to job\n{other}{other}");
        let mut filter = OutputFilter::default();
        let mut printed: Vec<u8> = output.lines().flat_map(|line| filter.push(line.into())).collect();
        printed.extend(filter.finish());
        assert_eq!(String::from_utf8(printed).unwrap(), format!("a\n{other}--\n{other}{other}"));
    }
}

//! What Open MPI's launcher and ranks say that means nothing here.

/// When a rank has died, and when the launcher does what it was asked to do.
const LINES: [&str; 4] = ["PMIX ERROR: ", "Forwarding signal ", "help-mpi-btl-tcp.txt", "orte_base_help_aggregate"];
/// Between two dashed lines, when a rank talks to one that is gone, which may have left because it was done.
const BOXES: [&str; 2] =
    ["Open MPI failed to TCP connect to a peer", "An MPI communication peer process has unexpectedly"];

/// Lets pass what means something, line by line.
#[derive(Debug, Default)]
pub(crate) struct OutputFilter {
    /// A dashed line: what follows says whether it passes.
    dashes: Vec<u8>,
    in_box: bool,
}

impl OutputFilter {
    /// What to print after this line, which has no end.
    pub fn pass(&mut self, mut line: Vec<u8>) -> Vec<u8> {
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

    /// What to print when nothing follows any more.
    pub fn rest(self) -> Vec<u8> {
        self.dashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_is_left_out_and_nothing_else() {
        let rule = "-".repeat(74);
        let noise = format!("{rule}\nWARNING: {} MPI process.  This\nshould not happen.\n\n{rule}\n", BOXES[0]);
        let other = format!("{rule}\nORTE was unable to start\n{rule}\n");
        let said = format!("a\n{noise}{noise}{other}{noise}--\nmpirun: Forwarding signal 10 to job\n{other}{other}");
        let mut quiet = OutputFilter::default();
        let mut printed: Vec<u8> = said.lines().flat_map(|line| quiet.pass(line.into())).collect();
        printed.extend(quiet.rest());
        assert_eq!(String::from_utf8(printed).unwrap(), format!("a\n{other}--\n{other}{other}"));
    }
}

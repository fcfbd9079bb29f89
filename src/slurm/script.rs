use std::path::{Path, PathBuf};

use shlex::Quoter;

/// The placeholder for the number of an array task in paths, as in Slurm's own file names.
pub const TASK_PLACE: &str = "%a";

const TEMPLATE: &str = include_str!("../../slurm/submit.sbatch");

/// The script requeues ranks that stopped early, as they do on `--signal`.
const REQUEUE: &str = "\
code=$?
# 75: it stopped early, and running again continues.
[ $code -ne 75 ] || scontrol requeue \"$SLURM_JOB_ID\"
exit $code
";

/// The parameters of a batch script.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    pub name: &'a str,
    /// The folder of logs and reports.
    pub directory: &'a Path,
    /// The options for `#SBATCH`.
    pub options: Vec<String>,
    pub is_array: bool,
    /// The signal before the time limit: `SIGNAL@SECONDS`.
    pub signal: &'a str,
    /// The PMI that `srun` offers to the MPI library.
    pub pmi: &'a str,
    pub cpus_per_task: Option<u32>,
    pub requeue: bool,
    pub exuvia: &'a Path,
    /// The arguments of `exuvia run`, except the job.
    pub arguments: &'a [String],
    /// Contains [`TASK_PLACE`] if [`Script::is_array`].
    pub job: &'a Path,
}

impl Script<'_> {
    /// The log and the report of the job with this id; for an array, with [`TASK_PLACE`] for the task.
    pub fn files(&self, id: &str) -> [PathBuf; 2] {
        let stem = self.stem(id, if self.is_array { TASK_PLACE } else { "" });
        [".log", ".report.json"].map(|suffix| self.directory.join(format!("{stem}{suffix}")))
    }

    /// The path of the script.
    pub fn file(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{}-{id}.sbatch", file_name(self.name)))
    }

    /// Renders the script.
    pub fn render(&self) -> String {
        let directory = self.directory.display().to_string().replace('%', "%%");
        let log = match self.is_array {
            true => format!("{directory}/{}.log", self.stem("%A", "%a")),
            false => format!("{directory}/{}.log", self.stem("%j", "")),
        };
        let (id, task) = match self.is_array {
            true => ("${SLURM_ARRAY_JOB_ID}", "${SLURM_ARRAY_TASK_ID}"),
            false => ("${SLURM_JOB_ID}", ""),
        };
        let report =
            format!("{}/\"{}.report.json\"", quote(&self.directory.display().to_string()), self.stem(id, task));
        let job = self.job.display().to_string();
        let job: Vec<String> = match self.is_array {
            true => job.split(TASK_PLACE).map(quote).collect(),
            false => vec![quote(&job)],
        };
        let arguments = self.arguments.iter().map(|argument| quote(argument));
        let arguments = arguments.chain([format!("--report {report}"), job.join("\"${SLURM_ARRAY_TASK_ID}\"")]);
        let options: Vec<String> = self.options.iter().map(|option| format!("#SBATCH {}", quote(option))).collect();
        let filled = [
            ("@name@", quote(self.name)),
            ("@log@", quote(&log)),
            ("@signal@", quote(self.signal)),
            ("@options@\n", options.iter().map(|line| format!("{line}\n")).collect()),
            ("@pmi@", self.pmi.to_owned()),
            // Since Slurm 22.05, a step does not inherit this option from the job.
            ("@step_options@ ", self.cpus_per_task.map_or(String::new(), |cpus| format!("--cpus-per-task={cpus} "))),
            ("@exuvia@", quote(&self.exuvia.display().to_string())),
            ("@arguments@", arguments.collect::<Vec<_>>().join(" ")),
            ("@requeue@\n", if self.requeue { REQUEUE.to_owned() } else { String::new() }),
        ];
        // Placeholders are replaced from the end of the text on, so that inserted text is never searched.
        let mut text = TEMPLATE.to_owned();
        let places = filled.iter().filter_map(|(place, with)| Some((TEMPLATE.find(place)?, place.len(), with)));
        let mut places: Vec<_> = places.collect();
        places.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
        for (at, length, with) in places {
            text.replace_range(at..at + length, with);
        }
        text
    }

    fn stem(&self, id: &str, task: &str) -> String {
        let task = if task.is_empty() { String::new() } else { format!("_{task}") };
        format!("{}-{id}{task}", file_name(self.name))
    }
}

/// The name of a job as part of file names.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

/// Quotes a word for both bash and `#SBATCH`, if needed. NUL, which no program argument contains, is left out.
fn quote(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c)) {
        return text.to_owned();
    }
    Quoter::new().allow_nul(true).quote(text).map(|quoted| quoted.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script<'a>(job: &'a Path, arguments: &'a [String]) -> Script<'a> {
        Script {
            name: "heat 2d",
            directory: Path::new("/home/me/exuvia-runs"),
            options: vec!["--nodes=2".to_owned(), "--comment=a b#c".to_owned()],
            is_array: false,
            signal: "USR1@30",
            pmi: "pmix",
            cpus_per_task: None,
            requeue: false,
            exuvia: Path::new("/opt/exuvia"),
            arguments,
            job,
        }
    }

    #[test]
    fn a_script_has_what_was_asked_for_and_one_line_that_runs() {
        let arguments = ["--tier".to_owned(), "baseline".to_owned()];
        let expected = r##"#!/bin/bash
# Written by `exuvia submit`; `sbatch` takes it again as it is.
#SBATCH --job-name='heat 2d'
#SBATCH --output=/home/me/exuvia-runs/heat-2d-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=USR1@30
#SBATCH --nodes=2
#SBATCH '--comment=a b#c'

# Which CPUs a rank may use is for Slurm to say, not for the MPI library; and ranks that wait give way to those that work.
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1

# -K1: when one rank dies, the others are ended.
srun -K1 --mpi=pmix /opt/exuvia run --tier baseline --report /home/me/exuvia-runs/"heat-2d-${SLURM_JOB_ID}.report.json" "/home/me/it's/@job@.toml"
"##;
        assert_eq!(script(Path::new("/home/me/it's/@job@.toml"), &arguments).render(), expected);
    }

    #[test]
    fn an_array_runs_a_job_of_its_own_in_each_task() {
        let mut array = script(Path::new("/home/me/part-%a.toml"), &[]);
        (array.is_array, array.requeue, array.cpus_per_task) = (true, true, Some(4));
        let expected = r##"#SBATCH --output=/home/me/exuvia-runs/heat-2d-%A_%a.log"##;
        assert!(array.render().contains(expected), "{}", array.render());
        let expected = r##"
srun -K1 --mpi=pmix --cpus-per-task=4 /opt/exuvia run --report /home/me/exuvia-runs/"heat-2d-${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.report.json" /home/me/part-"${SLURM_ARRAY_TASK_ID}".toml
code=$?
# 75: it stopped early, and running again continues.
[ $code -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
"##;
        assert!(array.render().ends_with(expected), "{}", array.render());
        assert_eq!(array.files("17")[0], Path::new("/home/me/exuvia-runs/heat-2d-17_%a.log"));
        assert_eq!(array.file("17"), Path::new("/home/me/exuvia-runs/heat-2d-17.sbatch"));
    }
}

use serde::{Deserialize, Serialize};

/// The class of a CPU: the machine code that it can run. Equal classes share one compiled artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuClass {
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
    /// The model name, for messages.
    pub name: String,
    /// The features of the CPU and the operating system, sorted, in LLVM's spelling.
    pub features: Vec<String>,
}

impl CpuClass {
    /// The class of this process's CPU.
    pub fn here() -> CpuClass {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut features = detect(&cpuinfo);
        features.sort_unstable();
        CpuClass { arch: std::env::consts::ARCH.to_owned(), name: model_name(&cpuinfo), features }
    }
}

/// The features that all classes have, so that code for these runs on all of them. Empty without classes or for mixed
/// architectures.
pub fn common_features<'a>(classes: impl IntoIterator<Item = &'a CpuClass>) -> Vec<String> {
    let mut classes = classes.into_iter();
    let Some(first) = classes.next() else {
        return Vec::new();
    };
    let mut common = first.features.clone();
    for class in classes {
        common.retain(|feature| class.arch == first.arch && class.features.contains(feature));
    }
    common
}

fn model_name(cpuinfo: &str) -> String {
    // x86 has a "model name"; many ARM kernels provide numbers only.
    field(cpuinfo, "model name").or_else(|| field(cpuinfo, "CPU part")).unwrap_or("unknown").to_owned()
}

fn field<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(target_arch = "x86_64")]
fn detect(_cpuinfo: &str) -> Vec<String> {
    /// Rust's names on the left where they differ from LLVM's on the right.
    macro_rules! detected {
        ($($rust:tt => $llvm:literal),* $(,)?) => {
            [$((std::arch::is_x86_feature_detected!($rust), $llvm)),*]
        };
    }
    // CPUID alone reports AVX even if the operating system does not save its registers; std checks both.
    let features = detected! {
        "sse" => "sse", "sse2" => "sse2", "sse3" => "sse3", "ssse3" => "ssse3",
        "sse4.1" => "sse4.1", "sse4.2" => "sse4.2", "sse4a" => "sse4a",
        "avx" => "avx", "avx2" => "avx2", "fma" => "fma", "f16c" => "f16c",
        "bmi1" => "bmi", "bmi2" => "bmi2", "lzcnt" => "lzcnt", "popcnt" => "popcnt", "tbm" => "tbm",
        "adx" => "adx", "aes" => "aes", "pclmulqdq" => "pclmul", "sha" => "sha", "gfni" => "gfni",
        "vaes" => "vaes", "vpclmulqdq" => "vpclmulqdq", "rdrand" => "rdrnd", "rdseed" => "rdseed",
        "cmpxchg16b" => "cx16", "fxsr" => "fxsr", "xsave" => "xsave", "xsaveopt" => "xsaveopt",
        "xsavec" => "xsavec", "xsaves" => "xsaves", "movbe" => "movbe",
        "avx512f" => "avx512f", "avx512cd" => "avx512cd", "avx512dq" => "avx512dq",
        "avx512bw" => "avx512bw", "avx512vl" => "avx512vl", "avx512ifma" => "avx512ifma",
        "avx512vbmi" => "avx512vbmi", "avx512vbmi2" => "avx512vbmi2", "avx512vnni" => "avx512vnni",
        "avx512bitalg" => "avx512bitalg", "avx512vpopcntdq" => "avx512vpopcntdq",
        "avx512bf16" => "avx512bf16", "avx512fp16" => "avx512fp16",
    };
    let present = features.into_iter().filter(|(has, _)| *has);
    present.map(|(_, name)| name.to_owned()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(cpuinfo: &str) -> Vec<String> {
    arm_features(cpuinfo)
}

/// Linux's names of ARM features, translated to LLVM's.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn arm_features(cpuinfo: &str) -> Vec<String> {
    const LLVM: [(&str, &str); 17] = [
        ("fp", "fp-armv8"),
        ("asimd", "neon"),
        ("asimdhp", "fullfp16"),
        ("asimddp", "dotprod"),
        ("asimdrdm", "rdm"),
        ("asimdfhm", "fp16fml"),
        ("atomics", "lse"),
        ("crc32", "crc"),
        ("aes", "aes"),
        ("sha2", "sha2"),
        ("sha3", "sha3"),
        ("jscvt", "jsconv"),
        ("fcma", "complxnum"),
        ("lrcpc", "rcpc"),
        ("sve", "sve"),
        ("sve2", "sve2"),
        ("bf16", "bf16"),
    ];
    let has: Vec<&str> = field(cpuinfo, "Features").unwrap_or_default().split_whitespace().collect();
    let known = LLVM.iter().filter(|(linux, _)| has.contains(linux));
    known.map(|(_, llvm)| (*llvm).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_cpu_has_sorted_features_and_a_name() {
        let class = CpuClass::here();
        assert!(class.features.is_sorted());
        assert!(!class.name.is_empty());
        #[cfg(target_arch = "x86_64")]
        assert!(class.features.iter().any(|f| f == "sse2"), "{class:?}");
    }

    #[test]
    fn common_is_the_intersection() {
        let class = |features: &[&str]| CpuClass {
            arch: "x86_64".to_owned(),
            name: String::new(),
            features: features.iter().map(|&f| f.to_owned()).collect(),
        };
        let classes = [class(&["avx", "avx2", "fma"]), class(&["avx", "fma"])];
        assert_eq!(common_features(&classes), ["avx", "fma"]);
        assert_eq!(common_features(&classes[..1]), ["avx", "avx2", "fma"]);
        assert!(common_features([]).is_empty());
        let arm = CpuClass { arch: "aarch64".to_owned(), ..class(&["avx"]) };
        assert!(common_features([&classes[0], &arm]).is_empty());
    }

    #[test]
    fn arm_names_are_translated() {
        let cpuinfo = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 atomics\nCPU part\t: 0xd0c\n";
        assert_eq!(arm_features(cpuinfo), ["fp-armv8", "neon", "lse", "crc"]);
        assert_eq!(model_name(cpuinfo), "0xd0c");
    }
}

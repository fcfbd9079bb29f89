//! Suggestions for misspelt words.

/// Returns the candidate closest to `word`, if any is close enough. The first one wins a tie.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
            (distance, candidate)
        })
        // One mistake in three letters is a misspelling; more is another word.
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count().max(word.chars().count());
            *distance <= length.div_ceil(3) && *distance < length
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns `did you mean 'x'?` or, if no candidate is close, `LABEL: all, of, them`.
pub(crate) fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, label: &str) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    if let Some(found) = nearest(word, candidates.iter().copied()) {
        return Some(format!("did you mean '{found}'?"));
    }
    (!candidates.is_empty()).then(|| format!("{label}: {}", candidates.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_corrected_and_other_words_are_not() {
        let keys = ["dataset", "dtype", "deflate", "chunk"];
        assert_eq!(nearest("chunks", keys), Some("chunk"));
        assert_eq!(nearest("datasett", keys), Some("dataset"));
        assert_eq!(nearest("DTYPE", keys), Some("dtype"));
        assert_eq!(nearest("compression", keys), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(suggest("zzz", keys, "keys").as_deref(), Some("keys: dataset, dtype, deflate, chunk"));
        assert_eq!(suggest("zzz", [], "keys"), None);
    }
}

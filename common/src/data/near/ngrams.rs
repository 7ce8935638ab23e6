//! Sets of word n-grams.

/// The hashes of a text's n-grams of words, ascending and distinct. A text of fewer words is one n-gram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ngrams(Vec<u64>);

impl Ngrams {
    /// The n-grams of each text; none spans two texts.
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = &'a str>, length: usize) -> Self {
        let mut hashes = Vec::new();
        let mut found = Vec::new();
        for text in texts {
            words(text, &mut found);
            let hash = |words: &[u64]| words.iter().fold(words.len() as u64, |hash, word| mix(hash ^ word));
            match found.len() < length {
                true if found.is_empty() => {}
                true => hashes.push(hash(&found)),
                false => hashes.extend(found.windows(length).map(hash)),
            }
            found.clear();
        }
        hashes.sort_unstable();
        hashes.dedup();
        Ngrams(hashes)
    }

    /// Jaccard similarity; 1 for two empty sets.
    pub(super) fn similarity(&self, other: &Self) -> f64 {
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut shared = 0usize;
        while let (Some(first), Some(second)) = (one.peek(), two.peek()) {
            match first.cmp(second) {
                std::cmp::Ordering::Less => _ = one.next(),
                std::cmp::Ordering::Greater => _ = two.next(),
                std::cmp::Ordering::Equal => {
                    shared += 1;
                    one.next();
                    two.next();
                }
            }
        }
        let all = self.0.len() + other.0.len() - shared;
        if all == 0 { 1.0 } else { shared as f64 / all as f64 }
    }

    /// The hashes mixed with a tag, so that different tags give different hashes.
    pub(super) fn tagged(&self, tag: u64) -> impl Iterator<Item = u64> {
        self.0.iter().map(move |hash| mix(hash ^ mix(tag)))
    }
}

/// The hashes of a text's words in lower case. A word is a run of letters and digits; every other character
/// except white space is a separate word, and so is each letter of scripts written without spaces.
fn words(text: &str, found: &mut Vec<u64>) {
    const START: u64 = 0xcbf2_9ce4_8422_2325;
    let mut word = START;
    let mut end = |word: &mut u64| {
        if *word != START {
            found.push(mix(std::mem::replace(word, START)));
        }
    };
    for letter in text.chars() {
        let in_run = letter.is_alphanumeric() && !is_unspaced(letter);
        if !in_run {
            end(&mut word);
        }
        if !letter.is_whitespace() {
            // FNV-1a over the lower-case letters.
            for lower in letter.to_lowercase() {
                word = (word ^ u64::from(lower)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        if !in_run {
            end(&mut word);
        }
    }
    end(&mut word);
}

/// Han, kana, Thai, Lao, Khmer and Burmese.
fn is_unspaced(letter: char) -> bool {
    matches!(letter,
        '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// A bijection that spreads bits: the finalizer of splitmix64.
pub(super) fn mix(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        let mut found = Vec::new();
        words(text, &mut found);
        found.len()
    }

    #[test]
    fn words_are_runs_symbols_and_letters_of_unspaced_scripts() {
        assert_eq!(count(""), 0);
        assert_eq!(count(" \n\t"), 0);
        assert_eq!(count("one two2 three"), 3);
        assert_eq!(count("x=1; y"), 5);
        assert_eq!(count("你好 world"), 3);
        assert_eq!(Ngrams::new(["One  TWO"], 5), Ngrams::new(["one two"], 5));
        assert_ne!(Ngrams::new(["2 + 2"], 5), Ngrams::new(["2 - 2"], 5));
    }

    #[test]
    fn similarity_is_of_sets() {
        let of = |text: &str| Ngrams::new([text], 2);
        // {ab, bc, cd} and {ab, bc, ce}.
        assert!((of("a b c d").similarity(&of("a b c e")) - 0.5).abs() < 1e-12);
        assert!((of("a b a b").similarity(&of("b a b")) - 1.0).abs() < 1e-12);
        assert!((of("").similarity(&of("")) - 1.0).abs() < 1e-12);
        assert_eq!(of("").similarity(&of("a")), 0.0);
        // No n-gram spans two texts.
        assert_eq!(Ngrams::new(["a b", "c d"], 2).0.len(), 2);
    }
}

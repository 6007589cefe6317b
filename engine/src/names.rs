//! Container ids and names: making them, checking them, finding one by what a user typed.
//!
//! Must not know: what a container is.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use rand::Rng;

use crate::error::{Error, Result};

/// A container's (or exec's) id: 64 lower-case hexadecimal digits, never all digits in its short form, because the short
/// form becomes a host name and some programs take digits for an address.
pub(crate) fn new_id() -> String {
    loop {
        let bytes: [u8; 32] = rand::rng().random();
        let id = hex::encode(bytes);
        if id[..12].bytes().any(|b| b.is_ascii_alphabetic()) {
            return id;
        }
    }
}

/// The twelve digits that people read.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Checks a name as Docker does and strips the leading slash: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub(crate) fn validate(name: &str) -> Result<String> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let ok = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bare.len() >= 2
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if ok {
        return Ok(bare.into());
    }
    Err(Error::invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// Who holds which name, and who is known by which id.
#[derive(Default)]
pub(crate) struct Index {
    by_name: HashMap<String, String>,
    by_id: BTreeMap<String, ()>,
}

impl Index {
    /// Takes a name for an id.
    pub(crate) fn reserve(&mut self, name: &str, id: &str) -> Result<()> {
        if let Some(holder) = self.by_name.get(name) {
            return Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or \
                 rename) that container to be able to reuse that name."
            )));
        }
        self.by_name.insert(name.into(), id.into());
        self.by_id.insert(id.into(), ());
        Ok(())
    }

    /// Takes a random free name for an id and says which.
    pub(crate) fn reserve_random(&mut self, id: &str) -> String {
        for attempt in 0..32 {
            let name = random(attempt > 6);
            if self.reserve(&name, id).is_ok() {
                return name;
            }
        }
        let name = short(id).to_string();
        self.by_name.insert(name.clone(), id.into());
        self.by_id.insert(id.into(), ());
        name
    }

    /// Lets a name go, if `id` holds it.
    pub(crate) fn release_name(&mut self, name: &str, id: &str) {
        if self.by_name.get(name).is_some_and(|holder| holder == id) {
            self.by_name.remove(name);
        }
    }

    /// Forgets an id and its name.
    pub(crate) fn release(&mut self, name: &str, id: &str) {
        self.release_name(name, id);
        self.by_id.remove(id);
    }

    /// Full id of what the user typed: a full id, a name, or a unique beginning of an id, in this order.
    pub(crate) fn resolve(&self, typed: &str) -> Result<String> {
        if typed.is_empty() {
            return Err(Error::invalid("No container name or ID supplied"));
        }
        if self.by_id.contains_key(typed) {
            return Ok(typed.into());
        }
        let bare = typed.strip_prefix('/').unwrap_or(typed);
        if let Some(id) = self.by_name.get(bare) {
            return Ok(id.clone());
        }
        let mut hits = self
            .by_id
            .range::<str, _>((Bound::Included(typed), Bound::Unbounded))
            .take_while(|(id, ())| id.starts_with(typed));
        match (hits.next(), hits.next()) {
            (Some((id, ())), None) => Ok(id.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "Multiple IDs found with provided prefix: {typed}: type more of the id"
            ))),
            (None, _) => Err(Error::not_found(format!("No such container: {typed}"))),
        }
    }
}

/// A random `adjective_surname`, with a digit behind it when the plain ones seem used up.
fn random(with_digit: bool) -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let surname = SURNAMES[rng.random_range(0..SURNAMES.len())];
    if with_digit {
        format!("{adjective}_{surname}{}", rng.random_range(0..10))
    } else {
        format!("{adjective}_{surname}")
    }
}

const ADJECTIVES: &[&str] = &[
    "afloat",
    "airtight",
    "ample",
    "azure",
    "balmy",
    "bold",
    "breezy",
    "bright",
    "brisk",
    "buoyant",
    "calm",
    "candid",
    "careful",
    "cheerful",
    "chilly",
    "clear",
    "clever",
    "coastal",
    "cobalt",
    "cosy",
    "crisp",
    "curious",
    "daring",
    "deep",
    "diligent",
    "distant",
    "dry",
    "eager",
    "earnest",
    "easy",
    "even",
    "fair",
    "faithful",
    "famous",
    "fearless",
    "firm",
    "fluent",
    "fond",
    "frank",
    "fresh",
    "frosty",
    "gallant",
    "gentle",
    "gifted",
    "glad",
    "golden",
    "graceful",
    "grand",
    "hardy",
    "hearty",
    "hidden",
    "honest",
    "hopeful",
    "humble",
    "ideal",
    "immersed",
    "inland",
    "ivory",
    "jaunty",
    "jolly",
    "jovial",
    "keen",
    "kind",
    "lasting",
    "level",
    "light",
    "lively",
    "loyal",
    "lucid",
    "lunar",
    "marine",
    "mellow",
    "merry",
    "mild",
    "mindful",
    "misty",
    "modest",
    "nautical",
    "neat",
    "nimble",
    "noble",
    "novel",
    "open",
    "patient",
    "pearly",
    "placid",
    "plucky",
    "polar",
    "polite",
    "prompt",
    "proud",
    "quick",
    "quiet",
    "ready",
    "robust",
    "rosy",
    "sealed",
    "serene",
    "silent",
    "silver",
    "simple",
    "sincere",
    "sleek",
    "smooth",
    "snug",
    "solid",
    "sound",
    "spry",
    "stable",
    "steady",
    "sterling",
    "still",
    "stout",
    "sturdy",
    "subtle",
    "sunny",
    "sure",
    "swift",
    "tender",
    "thrifty",
    "tidal",
    "tidy",
    "tranquil",
    "trim",
    "true",
    "trusty",
    "upbeat",
    "upright",
    "valiant",
    "vast",
    "velvet",
    "vivid",
    "warm",
    "watertight",
    "wise",
    "witty",
    "worthy",
    "young",
    "zealous",
    "zesty",
];

// People who built, dived, bridged, measured and computed.
const SURNAMES: &[&str] = &[
    "abel",
    "agnesi",
    "ampere",
    "anning",
    "archimedes",
    "ayrton",
    "babbage",
    "banneker",
    "bardeen",
    "barton",
    "bazalgette",
    "beaufort",
    "bell",
    "berners",
    "bernoulli",
    "bohr",
    "boole",
    "born",
    "bose",
    "bouguer",
    "boyle",
    "brahe",
    "braille",
    "brunel",
    "bushnell",
    "carson",
    "cauchy",
    "cavendish",
    "celsius",
    "chandrasekhar",
    "clarke",
    "codd",
    "cori",
    "coulomb",
    "cousteau",
    "curie",
    "cushman",
    "darwin",
    "descartes",
    "dijkstra",
    "dirac",
    "doppler",
    "drebbel",
    "eads",
    "earle",
    "eiffel",
    "einstein",
    "engelbart",
    "erdos",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "franklin",
    "fresnel",
    "fulton",
    "gagnan",
    "galileo",
    "galois",
    "gauss",
    "germain",
    "godel",
    "goodall",
    "halley",
    "hamilton",
    "hamming",
    "harrison",
    "hawking",
    "herschel",
    "hertz",
    "hilbert",
    "hodgkin",
    "hoover",
    "hopper",
    "hubble",
    "huygens",
    "hypatia",
    "johnson",
    "joule",
    "kahn",
    "kapany",
    "kepler",
    "khorana",
    "kilby",
    "knuth",
    "kovalevskaya",
    "lagrange",
    "lamarr",
    "lamport",
    "laplace",
    "lavoisier",
    "leavitt",
    "leibniz",
    "liskov",
    "lovelace",
    "maxwell",
    "mayer",
    "mccarthy",
    "mccarty",
    "meitner",
    "mendel",
    "mendeleev",
    "mercator",
    "merkle",
    "minsky",
    "mirzakhani",
    "morse",
    "nansen",
    "napier",
    "neumann",
    "newton",
    "nobel",
    "noether",
    "nyquist",
    "ohm",
    "papin",
    "pascal",
    "pasteur",
    "pauling",
    "perlman",
    "piccard",
    "planck",
    "poincare",
    "poisson",
    "raman",
    "ramanujan",
    "rankine",
    "ride",
    "riemann",
    "ritchie",
    "roebling",
    "rutherford",
    "sagan",
    "schrodinger",
    "shannon",
    "siebe",
    "smeaton",
    "somerville",
    "stevin",
    "stokes",
    "swirles",
    "telford",
    "tesla",
    "tharp",
    "thompson",
    "torricelli",
    "triger",
    "turing",
    "volta",
    "watt",
    "wiles",
    "wilkes",
    "wright",
    "wu",
    "yalow",
    "zeiss",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_docker_does() {
        for good in ["ab", "/ab", "a.b-c_d", "9x", "A1"] {
            assert_eq!(validate(good).unwrap(), good.trim_start_matches('/'));
        }
        for bad in ["", "/", "a", "-ab", "_ab", "a b", "a/b", "ä1", "//ab"] {
            let e = validate(bad).unwrap_err();
            assert!(
                e.message
                    .contains("only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
                "{bad}: {e}"
            );
        }
    }

    #[test]
    fn a_taken_name_names_its_holder() {
        let mut index = Index::default();
        let id = new_id();
        index.reserve("web", &id).unwrap();
        let e = index.reserve("web", &new_id()).unwrap_err();
        assert_eq!(
            e.message,
            format!(
                "Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to remove (or rename) \
                 that container to be able to reuse that name."
            )
        );
        index.release("web", &id);
        index.reserve("web", &new_id()).unwrap();
    }

    #[test]
    fn resolves_id_name_then_prefix() {
        let mut index = Index::default();
        index.reserve("abc", "ff00").unwrap();
        index.reserve("ff", "abcdef").unwrap();
        assert_eq!(index.resolve("ff00").unwrap(), "ff00");
        assert_eq!(index.resolve("/abc").unwrap(), "ff00");
        assert_eq!(
            index.resolve("ff").unwrap(),
            "abcdef",
            "a name wins over a prefix"
        );
        assert_eq!(index.resolve("ff0").unwrap(), "ff00");
        index.reserve("other", "abcd00").unwrap();
        assert!(
            index
                .resolve("abcd")
                .unwrap_err()
                .message
                .starts_with("Multiple IDs")
        );
        assert_eq!(
            index.resolve("zz").unwrap_err().message,
            "No such container: zz"
        );
    }

    #[test]
    fn random_names_are_valid_and_differ() {
        let mut index = Index::default();
        let names: std::collections::HashSet<_> =
            (0..500).map(|_| index.reserve_random(&new_id())).collect();
        assert_eq!(names.len(), 500);
        for name in names {
            validate(&name).unwrap();
        }
    }
}

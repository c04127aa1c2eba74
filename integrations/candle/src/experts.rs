//! The experts of a mixture, in memory when a router has chosen them.
//!
//! ```no_run
//! use cmf_candle::{cut, experts::ExpertMemory, moving::Moving};
//! use cmf_loader::resident::ResidentOptions;
//! use cmf_loader::{Budget, Model, Want};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("mixtral.cmf")?;
//! let card = cut::card(&model)?;
//! let experts = ExpertMemory::of(&model, card.config(), u16::MAX, &|_| true)?.ok_or("no mixture")?;
//! let options = ResidentOptions {
//!     demand_bytes: experts.token_bytes(),
//!     least_demand_bytes: experts.one_bytes(),
//!     want: Some(Arc::new(move |name| if experts.has(name) { Want::Demand } else { Want::Budget })),
//!     ..ResidentOptions::default()
//! };
//! let moving = Moving::new(model.resident_with(Budget::parse("6GiB")?, options)?);
//! # let _ = moving;
//! # Ok(())
//! # }
//! ```

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{ExpertName, Experts};
use candle_core::Tensor;
use cmf_loader::Model;
use cmf_loader::resident::Resident;
use std::collections::BTreeSet;

/// What the experts of a model take in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertMemory {
    names: BTreeSet<String>,
    one_bytes: u64,
    token_bytes: u64,
}

impl ExpertMemory {
    /// The experts of `model` whose names `takes` takes, all matrices of each, with levels up to `level`. `None`
    /// where there are none.
    ///
    /// # Errors
    /// As [`Model::demanded_bytes`].
    pub fn of(
        model: &Model,
        config: &Config,
        level: u16,
        takes: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Self>> {
        let Some(mixture) = &config.mixture else { return Ok(None) };
        let mut memory = Self { names: BTreeSet::new(), one_bytes: 0, token_bytes: 0 };
        for layer in 0..config.layers {
            let mut bytes = Vec::new();
            for expert in config.experts(layer) {
                let names = [expert.gate, expert.up, expert.down];
                if names.iter().all(|name| takes(name)) {
                    bytes.push(model.demanded_bytes(names.iter().map(String::as_str), level)?);
                    memory.names.extend(names);
                }
            }
            bytes.sort_unstable_by(|a, b| b.cmp(a));
            memory.one_bytes = memory.one_bytes.max(bytes.first().copied().unwrap_or(0));
            let of_layer = bytes.into_iter().take(mixture.per_token);
            memory.token_bytes = of_layer.fold(memory.token_bytes, u64::saturating_add);
        }
        Ok((!memory.names.is_empty()).then_some(memory))
    }

    /// Whether the tensor called `name` is of an expert.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Matrices of all experts.
    pub fn matrices(&self) -> usize {
        self.names.len()
    }

    /// Bytes of the largest expert, in pages: without room for that no token can be made.
    pub fn one_bytes(&self) -> u64 {
        self.one_bytes
    }

    /// Bytes of as many experts as are chosen for one token in all layers, in pages, of each layer the largest:
    /// with less the experts of the first layers are gone when the next token needs them.
    pub fn token_bytes(&self) -> u64 {
        self.token_bytes
    }
}

/// Makes experts of a layer.
pub(crate) type Make<'w, 'f> = &'f dyn Fn(&[ExpertName]) -> Result<Box<dyn Experts + 'w>>;

/// Experts of a layer: those that are on demand in `resident` as `demanded` makes them, required while they
/// are multiplied with, and others as `loaded` makes them.
pub(crate) fn on_demand<'w>(
    resident: &'w Resident<'_>,
    experts: &[ExpertName],
    loaded: Make<'w, '_>,
    demanded: Make<'w, '_>,
) -> Result<Box<dyn Experts + 'w>> {
    let (mut places, mut of_loaded, mut of_demanded) = (Vec::new(), Vec::new(), Vec::new());
    for expert in experts {
        let names = [&expert.gate, &expert.up, &expert.down];
        let (place, of) = match names.iter().filter(|name| resident.holds(name.as_str()).is_ok()).count() {
            0 => (Place::Loaded(of_loaded.len()), &mut of_loaded),
            3 => (Place::Demanded(of_demanded.len(), names.map(String::clone)), &mut of_demanded),
            n => {
                let name = expert.gate.escape_debug();
                let problem = format!("{n} of the 3 matrices are on demand, and others not");
                return Err(Error::argument(format!("expert of tensor `{name}`: {problem}")));
            }
        };
        places.push(place);
        of.push(expert.clone());
    }
    match of_demanded.is_empty() {
        true => loaded(experts),
        false => {
            let (loaded, demanded) = (loaded(&of_loaded)?, demanded(&of_demanded)?);
            Ok(Box::new(OnDemand { resident, places, loaded, demanded }))
        }
    }
}

/// Where an expert is.
enum Place {
    Loaded(usize),
    /// With the names of its matrices.
    Demanded(usize, [String; 3]),
}

struct OnDemand<'w, 'm> {
    resident: &'w Resident<'m>,
    places: Vec<Place>,
    loaded: Box<dyn Experts + 'w>,
    demanded: Box<dyn Experts + 'w>,
}

impl Experts for OnDemand<'_, '_> {
    fn expect(&self, experts: &[usize]) -> Result<()> {
        let mut names = Vec::new();
        for expert in experts {
            match self.places.get(*expert).ok_or_else(|| Error::argument("no such expert"))? {
                Place::Loaded(_) => {}
                Place::Demanded(_, of) => names.extend(of.iter().map(String::as_str)),
            }
        }
        Ok(self.resident.ask(names)?)
    }

    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        match self.places.get(expert).ok_or_else(|| Error::argument("no such expert"))? {
            Place::Loaded(place) => self.loaded.forward(*place, x),
            Place::Demanded(place, names) => {
                // In memory until it has been multiplied with.
                let _required = self.resident.require(names.each_ref().map(String::as_str))?;
                self.demanded.forward(*place, x)
            }
        }
    }
}

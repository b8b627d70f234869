//! Load: what backends report, and what it does to a feature.

use serde::Deserialize;

use crate::decision::command::{Class, Command, Signal, Signals};
use crate::decision::reply::{
    CapacityView, ClassRoom, FeatureLoadView, FeatureView, ShareStatus, SharerView, SignalView,
};
use crate::edge::body::Object;
use crate::edge::wire::evidence::Amount;
use crate::edge::wire::json::{Derived, WriteJson, write_list, write_object};
use crate::edge::wire::quantity::AsText;
use crate::edge::wire::text::Text;
use crate::units::{Ppm, Span};

// --- asked --------------------------------------------------------------------------------------

/// `POST /v1/signals`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalsBody<'a> {
    #[serde(borrow)]
    signals: Vec<Object<SignalBody<'a>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignalBody<'a> {
    #[serde(borrow)]
    feature: Text<'a>,
    #[serde(borrow)]
    region: Text<'a>,
    #[serde(borrow)]
    source: Text<'a>,
    #[serde(default)]
    utilisation: Option<Ppm>,
    #[serde(default)]
    queue_depth: Option<u64>,
    #[serde(default)]
    latency_ms: Option<u64>,
    ttl_ms: u64,
}

impl SignalsBody<'_> {
    pub(crate) fn len(&self) -> usize {
        self.signals.len()
    }

    pub(crate) fn command(&self) -> Command<'_> {
        let signals = self.signals.iter().map(|Object(signal)| Signal {
            feature: signal.feature.as_str(),
            region: signal.region.as_str(),
            source: signal.source.as_str(),
            utilisation: signal.utilisation,
            queue_depth: signal.queue_depth,
            latency: signal.latency_ms.map(Span),
            ttl: Span(signal.ttl_ms),
        });
        Command::Signals(Signals { signals: signals.collect() })
    }
}

// --- answered -----------------------------------------------------------------------------------

/// `GET /v1/features/{feature}`.
pub(crate) struct FeatureAnswer<'a> {
    pub(crate) view: &'a FeatureView,
    pub(crate) sharers: &'a [SharerView],
}

impl WriteJson for FeatureAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let view = self.view;
        write_object!(out, {
            "feature": *view.feature,
            "load": view.load_version,
            "follows_load": view.follows_load,
            "factor": Derived(&view.factor),
            "pressure": view.pressure.map(Factor),
            "classes": Classes(view),
            "capacity": CapacityList(&view.capacity),
            "sharers": SharerList(self.sharers),
            "signals": SignalList(&view.signals),
        });
    }
}

struct SharerList<'a>(&'a [SharerView]);

impl WriteJson for SharerList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for SharerView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "limit": *self.limit,
            "class"?: self.class.as_ref().map(Derived),
            "account": *self.account,
            "weight": self.weight,
            "has": Amount::of(&self.unit, self.has),
            "asks": Amount::of(&self.unit, self.asks),
            "fair_part"?: self.fair_part.map(|part| Amount::of(&self.unit, part)),
        });
    }
}

/// `GET /v1/features`.
pub(crate) struct FeaturesAnswer<'a> {
    pub(crate) load: u64,
    pub(crate) items: &'a [FeatureLoadView],
}

impl WriteJson for FeaturesAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "load": self.load, "items": FeatureList(self.items), });
    }
}

struct FeatureList<'a>(&'a [FeatureLoadView]);

impl WriteJson for FeatureList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for FeatureLoadView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "feature": *self.feature,
            "follows_load": self.follows_load,
            "factor": Derived(&self.factor),
            "pressure": self.pressure.map(Factor),
            "sources": self.sources,
        });
    }
}

struct CapacityList<'a>(&'a [CapacityView]);

impl WriteJson for CapacityList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter().map(CapacityAnswer));
    }
}

/// A limit of a capacity as limits are shown everywhere, with what each class has of it.
struct CapacityAnswer<'a>(&'a CapacityView);

impl WriteJson for CapacityAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let CapacityView { limit, by_class } = self.0;
        write_object!(out, { "limit": *limit, "classes": ClassRooms { unit: &limit.unit, by_class }, });
    }
}

struct ClassRooms<'a> {
    unit: &'a str,
    by_class: &'a [ClassRoom],
}

impl WriteJson for ClassRooms<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.by_class.iter().map(|room| ClassRoomAnswer { unit: self.unit, room }));
    }
}

struct ClassRoomAnswer<'a> {
    unit: &'a str,
    room: &'a ClassRoom,
}

impl WriteJson for ClassRoomAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let amount = |value| Amount::of(self.unit, value);
        let ClassRoom { class, share, available, fair_part } = self.room;
        write_object!(out, {
            "class": Derived(class),
            "share"?: share.map(|share| ShareAnswer { unit: self.unit, share }),
            "available": amount(*available),
            "fair_part"?: fair_part.map(amount),
        });
    }
}

struct ShareAnswer<'a> {
    unit: &'a str,
    share: ShareStatus,
}

impl WriteJson for ShareAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let amount = |value| Amount::of(self.unit, value);
        let ShareStatus { base, quota, used } = self.share;
        write_object!(out, {
            "quota": amount(quota),
            "base_quota"?: (base != quota).then(|| amount(base)),
            "used": amount(used),
            "remaining": amount(quota.saturating_sub(used)),
        });
    }
}

struct Factor(Ppm);

impl WriteJson for Factor {
    fn write(&self, out: &mut Vec<u8>) {
        Derived(&self.0).write(out);
    }
}

struct Classes<'a>(&'a FeatureView);

impl WriteJson for Classes<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let view = self.0;
        let classes = Class::ALL.iter().zip(view.by_class).enumerate();
        write_list(
            out,
            classes.map(|(place, (class, factor))| {
                let share = view.shares.map(|shares| shares[place]);
                ClassAnswer { class: *class, share, factor }
            }),
        );
    }
}

struct ClassAnswer {
    class: Class,
    share: Option<Ppm>,
    factor: Ppm,
}

impl WriteJson for ClassAnswer {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "class": Derived(&self.class),
            "share"?: self.share.map(Factor),
            "factor": Derived(&self.factor),
        });
    }
}

struct SignalList<'a>(&'a [SignalView]);

impl WriteJson for SignalList<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter());
    }
}

impl WriteJson for SignalView {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, {
            "region": *self.region,
            "source": *self.source,
            "utilisation"?: self.utilisation.map(Factor),
            "queue_depth"?: self.queue_depth,
            "latency_ms"?: self.latency.map(|latency| latency.0),
            "reported_at": AsText(self.reported_at),
            "expires_at": AsText(self.expires_at),
        });
    }
}

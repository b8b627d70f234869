//! Writing JSON straight into a buffer, with the names of fields as ready-made bytes.
//!
//! A general serializer looks at every character of every name, in every answer. For the answers
//! that a batch holds by the hundred, that took two thirds of the time of writing them.

use std::io::Write;
use std::sync::Arc;

use crate::decision::reply::{AdmissionId, TopUpId};

/// A value that can write itself.
pub(crate) trait WriteJson {
    fn write(&self, out: &mut Vec<u8>);
}

/// Writes an object: `"name": value` always, `"name"?: value` only where the value is there.
macro_rules! write_object {
    ($out:expr, { $($fields:tt)* }) => {{
        let out: &mut Vec<u8> = $out;
        out.push(b'{');
        let start = out.len();
        $crate::edge::wire::json::write_object!(@fields out, start, $($fields)*);
        out.push(b'}');
    }};
    (@fields $out:ident, $start:ident,) => {};
    (@fields $out:ident, $start:ident, $name:literal : $value:expr, $($rest:tt)*) => {
        $crate::edge::wire::json::write_object!(@field $out, $start, $name, &$value);
        $crate::edge::wire::json::write_object!(@fields $out, $start, $($rest)*);
    };
    (@fields $out:ident, $start:ident, $name:literal ?: $value:expr, $($rest:tt)*) => {
        if let Some(value) = &$value {
            $crate::edge::wire::json::write_object!(@field $out, $start, $name, value);
        }
        $crate::edge::wire::json::write_object!(@fields $out, $start, $($rest)*);
    };
    (@field $out:ident, $start:ident, $name:literal, $value:expr) => {
        if $out.len() > $start {
            $out.push(b',');
        }
        $out.extend_from_slice(concat!("\"", $name, "\":").as_bytes());
        $crate::edge::wire::json::WriteJson::write($value, $out);
    };
}
pub(crate) use write_object;

/// Writes a list.
pub(crate) fn write_list<T: WriteJson>(out: &mut Vec<u8>, values: impl Iterator<Item = T>) {
    out.push(b'[');
    for (place, value) in values.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        value.write(out);
    }
    out.push(b']');
}

impl WriteJson for str {
    fn write(&self, out: &mut Vec<u8>) {
        if self.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            out.push(b'"');
            out.extend_from_slice(self.as_bytes());
            out.push(b'"');
        } else {
            Derived(self).write(out);
        }
    }
}

impl<T: WriteJson + ?Sized> WriteJson for &T {
    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
}

impl WriteJson for Arc<str> {
    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
}

impl WriteJson for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

/// A value, or null.
impl<T: WriteJson> WriteJson for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(out),
            None => out.extend_from_slice(b"null"),
        }
    }
}

impl WriteJson for TopUpId {
    fn write(&self, out: &mut Vec<u8>) {
        // A buffer in memory takes every byte.
        let _infallible = write!(out, "\"{self}\"");
    }
}

impl WriteJson for AdmissionId {
    fn write(&self, out: &mut Vec<u8>) {
        // A buffer in memory takes every byte.
        let _infallible = write!(out, "\"{self}\"");
    }
}

/// What is rarely written, by its derived form.
pub(crate) struct Derived<'a, T: ?Sized>(pub(crate) &'a T);

impl<T: serde::Serialize + ?Sized> WriteJson for Derived<'_, T> {
    fn write(&self, out: &mut Vec<u8>) {
        // Our own types have string keys and a buffer in memory takes every byte: this cannot fail.
        // Were a type ever written that can, half an answer must not pass for a whole one.
        let before = out.len();
        if let Err(error) = serde_json::to_writer(&mut *out, self.0) {
            tracing::error!(%error, "an answer cannot be written");
            out.truncate(before);
            out.extend_from_slice(b"null");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &(impl WriteJson + ?Sized)) -> String {
        let mut out = Vec::new();
        value.write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn texts_are_escaped_as_everywhere_else() {
        for text in ["", "five_hours", "a\"b", "a\\b", "a\nb", "\u{0}", "ключ", "\u{7f}", "</script>"] {
            assert_eq!(written(text), serde_json::to_string(text).expect("text"));
        }
    }

    #[test]
    fn absent_fields_leave_no_comma() {
        let object = |first: Option<u64>, last: Option<u64>| {
            let mut out = Vec::new();
            write_object!(&mut out, { "first"?: first, "middle": true, "none": None::<u64>, "last"?: last, });
            String::from_utf8(out).expect("text")
        };
        assert_eq!(object(None, None), r#"{"middle":true,"none":null}"#);
        assert_eq!(
            object(Some(1), Some(u64::MAX)),
            r#"{"first":1,"middle":true,"none":null,"last":18446744073709551615}"#
        );
    }

    #[test]
    fn an_admission_is_written_as_its_text() {
        assert_eq!(written(&AdmissionId(47)), "\"adm_2f\"");
    }
}

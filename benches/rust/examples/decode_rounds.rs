//! Decodes a body again and again and says nothing: something to count the instructions of.
//!
//! ```text
//! decode_rounds vllm_chat|llamacpp|tgi FRAMES READ_BYTES|frame ROUNDS
//! ```

use std::error::Error;

use worker_adapters_benches::{Body, decode};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, frames, size, rounds] = arguments.as_slice() else {
        return Err("usage: decode_rounds BODY FRAMES READ_BYTES|frame ROUNDS".into());
    };
    let frames = frames.parse()?;
    let body = match name.as_str() {
        "vllm_chat" => Body::vllm_chat(frames),
        "llamacpp" => Body::llamacpp(frames),
        "tgi" => Body::tgi(frames),
        _ => return Err(format!("no body {name}").into()),
    };
    let reads =
        if size == "frame" { body.frames.clone() } else { body.reads(size.parse::<usize>()?) };
    let mut events = Vec::new();
    for _ in 0..rounds.parse::<u32>()? {
        if decode(body.engine, &reads, &mut events) < frames {
            return Err("events were lost".into());
        }
    }
    Ok(())
}

//! Who a response is for: the fake stream takes its events itself.

pub trait Sink: Send {}

pub struct Nobody;

impl Sink for Nobody {}

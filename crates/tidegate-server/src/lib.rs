//! Tidegate over HTTP: a router to mount in an application of your own, and what tidegate serve is made of.

// Package feed sends the events of a watch over HTTP, as lines of JSON or as Server-Sent
// Events. Feed has the algorithm and its invariants.
package feed

// Package browser tells the requests that web pages make browsers send from those of
// programs, and refuses what a page must not do to a node.
//
// A Guard judges a request by its header and its connection alone, before its route does
// anything. In this order it refuses
//
//  1. hosts that are not names of the node, because a page can make its own name resolve
//     to an address of the node (DNS rebinding) and is then of the same origin;
//  2. changes that a page of another origin causes, by the rules of
//     http.CrossOriginProtection;
//  3. where the node is read-only for pages, changes by any page, its own included.
//
// Programs do not send what browsers do, and do not notice any of this beyond loopback.
//
// Rejected: a secret in the page that its requests repeat. It would tell the node's page
// from others, but curl from neither, and a page of the same origin can read it.
package browser

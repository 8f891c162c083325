// Package certs serves TLS with the certificates that the files hold now, on a
// listener and on connections between members.
//
// # How it works
//
// A Bundle reads four files: certificate, key, authorities, and revocation list.
// What they say is kept as one value that never changes, the material, and every
// handshake uses the current one. Watch looks at the files every second. If they
// changed and fit together, a new material replaces the old one, and every open
// connection is judged again by it. If they do not fit together, for example
// because a new certificate was written and its key was not yet, the old material
// stays in use, and the problem is counted and logged once.
//
// Looking every second needs no dependency and costs a few microseconds. It also
// notices a directory that is swapped as a whole by a symbolic link, as Kubernetes
// does; a watch on the files would still be looking at the old ones.
//
// An Authority issues certificates, for kvd cert and for tests.
//
// # Invariants
//
//	B1  No handshake succeeds with a certificate that the current material
//	    refuses, not even by resuming a session. Certificates are therefore
//	    verified in VerifyConnection: it is the only callback of crypto/tls that
//	    also runs when a session is resumed.
//	B2  No connection outlives the material that admitted its other side by more
//	    than the judgment of the next one. A connection is registered before it is
//	    judged by the current material; otherwise a change in between would miss
//	    it.
//	B3  A revocation list counts only with the signature of an authority. Anyone
//	    who could slip in a list without one could bring a revoked certificate back.
//	B4  A material replaces another one only as a whole, and only if it can do its
//	    work.
//
// A revocation list that should have been replaced stays in force, with a warning:
// a forgotten renewal must not stop a cluster. An expired certificate of our own is
// an error in the log and not the end of the process: the others refuse it, and the
// operator needs a node that still runs to replace it on.
//
// # Rejected
//
//   - Reading the files only at startup, or only on SIGHUP. Certificates are renewed
//     every few weeks or hours by machines that signal nobody.
//   - OCSP. It makes every handshake depend on another service.
//   - Closing connections when our own certificate changes. The other side judged
//     the old one, and it is still good.
package certs

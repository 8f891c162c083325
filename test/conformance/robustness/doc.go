// Package robustness lets the traffics of etcd's robustness tests loose on a
// cluster, kills and restarts its members meanwhile, and has etcd's judges look
// at what the clients saw: whether the calls were linearizable by etcd's own
// model, which predicts each revision, whether watches kept their guarantees, and
// whether reads of old revisions were right.
//
// The judges want to know which requests were persisted. For etcd they read its
// log; kvd's log has another form. What changed a key, the watches saw: each
// member was watched from the first revision on, and their events together
// must have no gap. Compactions leave no event; those that failed are handed
// over in a way that lets them turn out either way.
package robustness

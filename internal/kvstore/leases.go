package kvstore

import "encoding/binary"

// leaseID returns the key of a lease in its table, and the prefix of its keys in the
// table of the keys of leases.
func leaseID(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// bind keeps the table of the keys of leases when a key changes its lease. 0 is none.
func (x *executor) bind(key string, before, after uint64) error {
	if before != 0 {
		x.rows.delete(tableLeaseKey, append(leaseID(before), key...))
	}
	if after != 0 {
		x.rows.set(tableLeaseKey, append(leaseID(after), key...), []byte{})
	}
	return nil
}

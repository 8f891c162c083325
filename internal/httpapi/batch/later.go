package batch

import (
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Later refuses a command with parts that the store does not carry out yet.
func Later(c *kvstore.Command) error {
	if c.TTLMillis != 0 || c.Lease != 0 {
		return api.Errorf(api.BadRequest, "this version of kvd does not support ttl and lease; send the operation without them")
	}
	if c.Txn == nil {
		return nil
	}
	for _, branch := range [][]kvstore.Command{c.Txn.Then, c.Txn.Else} {
		for i := range branch {
			if err := Later(&branch[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

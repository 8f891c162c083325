package guard

import (
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/rights"
)

// AppendNeeds appends what the command does, without what Leases names.
func AppendNeeds(dst []rights.Need, c *command.Command) []rights.Need {
	switch c.Op {
	case command.OpPut, command.OpAppend, command.OpDelete:
		return append(dst, onKey(c, rights.Write))
	case command.OpIncr: // it returns the sum
		return append(dst, onKey(c, rights.ReadWrite))
	case command.OpGet:
		return append(dst, onKey(c, rights.Read))
	case command.OpDeleteRange, command.OpList:
		return append(dst, onRange(c))
	case command.OpTxn:
		return appendTxn(dst, c.Txn)
	case command.OpLock, command.OpUnlock:
		return append(dst, rights.Need{Access: rights.Write, Space: rights.Locks, Range: rights.Single(c.Key)})
	case command.OpLeaseGrant:
		return append(dst, rights.Need{}) // of anybody who can do anything with it
	case command.OpCompact:
		return append(dst, rights.Need{Capability: rights.Operate})
	case command.OpSettings:
		return append(dst, rights.Need{Capability: rights.Settings})
	case command.OpRights:
		return append(dst, rights.Need{Capability: rights.Auth})
	}
	return dst // OpLeaseRevoke is about keys, and OpForget about records of the principal
}

// onKey is what a command on one key needs. A command that returns the previous pair,
// or shows whether a condition on it holds, reads the key.
func onKey(c *command.Command, access rights.Access) rights.Need {
	if c.ReturnPrevious || len(c.Conditions) > 0 || c.UnlessEqual {
		access |= rights.Read
	}
	return rights.Need{Access: access, Range: rights.Single(c.Key)}
}

func onRange(c *command.Command) rights.Need {
	n := rights.Need{Access: rights.Read, Range: rights.Range{Start: c.Key, End: c.End}}
	if c.Op == command.OpDeleteRange {
		n.Access = rights.Write
		if c.ReturnPrevious {
			n.Access = rights.ReadWrite
		}
	}
	return n
}

// appendTxn takes both branches: which one is taken would say how the comparisons ended.
func appendTxn(dst []rights.Need, t *command.Txn) []rights.Need {
	for i := range t.If {
		c := &t.If[i]
		n := rights.Need{Access: rights.Read, Range: rights.Single(c.Key)}
		if c.Range {
			n.Range = rights.Range{Start: c.Key, End: c.End}
		}
		dst = append(dst, n)
	}
	for _, branch := range [][]command.Command{t.Then, t.Else} {
		for i := range branch {
			dst = AppendNeeds(dst, &branch[i])
		}
	}
	return dst
}

// Leases appends the leases whose keys the command's origin must be allowed to write:
// those that it binds something to, or ends.
func Leases(dst []uint64, c *command.Command) []uint64 {
	if c.Txn != nil {
		for _, branch := range [][]command.Command{c.Txn.Then, c.Txn.Else} {
			for i := range branch {
				dst = Leases(dst, &branch[i])
			}
		}
	}
	if c.Lease != 0 && c.Op != command.OpLeaseGrant {
		dst = append(dst, c.Lease)
	}
	return dst
}

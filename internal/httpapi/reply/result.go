package reply

import (
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// AppendChange appends the fields with the result of a command that changes keys,
// beginning with a comma. The routes of single keys, streams, and transactions answer
// with the same fields.
func AppendChange(dst []byte, op kvstore.Op, previous bool, res *kvstore.Result) []byte {
	if op == kvstore.OpDelete || op == kvstore.OpDeleteRange {
		dst = AppendNumber(dst, "deleted", res.Deleted)
		dst = AppendNumber(dst, "revision", res.Revision)
	} else {
		dst = appendWritten(dst, op, res)
	}
	switch {
	case !previous:
		return dst
	case op == kvstore.OpDeleteRange:
		dst = append(dst, `,"previous":`...)
		return appendPairs(dst, res.Pairs, false)
	}
	return AppendPrevious(dst, res.Previous)
}

// appendWritten appends the fields of a key that was written.
func appendWritten(dst []byte, op kvstore.Op, res *kvstore.Result) []byte {
	if op == kvstore.OpIncr {
		dst = append(dst, ',')
		dst = AppendBytes(dst, "value", res.KV.Value)
	}
	dst = AppendNumber(dst, "revision", res.Revision)
	dst = AppendNumber(dst, "create_revision", res.KV.CreateRevision)
	dst = AppendNumber(dst, "mod_revision", res.KV.ModRevision)
	dst = AppendNumber(dst, "version", res.KV.Version)
	if res.KV.Lease != 0 {
		dst = AppendLease(dst, "lease", res.KV.Lease)
	}
	if res.Lease != nil {
		dst = append(dst, `,"ttl":"`...)
		dst = append(dst, (time.Duration(res.Lease.TTLMillis) * time.Millisecond).String()...)
		dst = append(dst, '"')
	}
	return dst
}

// AppendLease appends a comma and a field with the id of a lease, which is a string
// if readers that keep numbers as doubles would change it.
func AppendLease(dst []byte, name string, id uint64) []byte {
	if id <= limits.MaxSafeInteger {
		return AppendNumber(dst, name, id)
	}
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	dst = append(dst, `":"`...)
	return append(strconv.AppendUint(dst, id, 10), '"')
}

// appendPairs appends an array of pairs.
func appendPairs(dst []byte, pairs []kvstore.KV, keysOnly bool) []byte {
	dst = append(dst, '[')
	for i := range pairs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendKV(dst, &pairs[i], keysOnly)
	}
	return append(dst, ']')
}

// AppendTxn appends the object with the result of a transaction: whether its
// comparisons held, and one object for each operation of the branch taken.
func AppendTxn(dst []byte, t *kvstore.Txn, res *kvstore.Result) []byte {
	return append(AppendTxnFields(append(dst, '{'), t, res), '}')
}

// AppendTxnFields appends the fields of that object.
func AppendTxnFields(dst []byte, t *kvstore.Txn, res *kvstore.Result) []byte {
	taken := branchTaken(t, res)
	dst = append(dst, `"succeeded":`...)
	dst = strconv.AppendBool(dst, res.Succeeded)
	dst = AppendNumber(dst, "revision", res.Revision)
	dst = append(dst, `,"results":[`...)
	for i := range taken {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendStep(dst, &taken[i], &res.Results[i])
	}
	return append(dst, ']')
}

// appendStep appends the object with the result of one operation of a transaction.
func appendStep(dst []byte, c *kvstore.Command, res *kvstore.Result) []byte {
	switch c.Op {
	case kvstore.OpTxn:
		return AppendTxn(dst, c.Txn, res)
	case kvstore.OpGet:
		return appendGot(dst, c, res)
	case kvstore.OpList:
		return append(AppendListed(append(dst, '{'), c.Read, res), '}')
	case kvstore.OpDeleteRange:
		dst = append(dst, `{"deleted":`...)
		dst = strconv.AppendUint(dst, res.Deleted, 10)
		dst = AppendNumber(dst, "revision", res.Revision)
		if c.ReturnPrevious {
			dst = append(dst, `,"previous":`...)
			dst = appendPairs(dst, res.Pairs, false)
		}
		return append(dst, '}')
	}
	dst = AppendBytes(append(dst, '{'), "key", c.Key)
	return append(AppendChange(dst, c.Op, c.ReturnPrevious, res), '}')
}

// appendGot appends the pair that was read. A key that does not exist is a result as
// well: "exists" is false, and the other fields of a pair are missing.
func appendGot(dst []byte, c *kvstore.Command, res *kvstore.Result) []byte {
	if len(res.Pairs) > 0 {
		return AppendKV(dst, &res.Pairs[0], false)
	}
	dst = AppendBytes(append(dst, '{'), "key", c.Key)
	return append(dst, `,"exists":false}`...)
}

// AppendListed appends the fields with the result of a list. "more" says that its
// limit left some out.
func AppendListed(dst []byte, r *kvstore.Read, res *kvstore.Result) []byte {
	dst = append(dst, `"revision":`...)
	dst = strconv.AppendUint(dst, res.Revision, 10)
	if r.CountOnly {
		return AppendNumber(dst, "count", res.Count)
	}
	dst = append(dst, `,"kvs":`...)
	dst = appendPairs(dst, res.Pairs, r.KeysOnly)
	dst = AppendNumber(dst, "count", uint64(len(res.Pairs)))
	if res.More {
		dst = append(dst, `,"more":true`...)
	}
	return dst
}

// Changed reports whether a command raised the revision.
func Changed(op kvstore.Op, t *kvstore.Txn, res *kvstore.Result) bool {
	switch {
	case res.Outcome != kvstore.OK:
		return false
	case op == kvstore.OpGet || op == kvstore.OpList:
		return false
	case op == kvstore.OpDelete || op == kvstore.OpDeleteRange:
		return res.Deleted > 0
	case op != kvstore.OpTxn:
		return true
	}
	for i, c := range branchTaken(t, res) {
		if Changed(c.Op, c.Txn, &res.Results[i]) {
			return true
		}
	}
	return false
}

func branchTaken(t *kvstore.Txn, res *kvstore.Result) []kvstore.Command {
	if res.Succeeded {
		return t.Then
	}
	return t.Else
}

package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/rights"
)

// line is one line of the log. docs/audit.md describes the fields; a test compares them.
type line struct {
	Time      string `json:"time"`
	RequestID string `json:"request_id,omitempty"`
	Face      string `json:"face,omitempty"`
	Client    string `json:"client,omitempty"`
	User      string `json:"user,omitempty"`
	Claimed   string `json:"claimed,omitempty"`
	Proof     string `json:"proof,omitempty"`
	TokenID   string `json:"token_id,omitempty"`
	Operation string `json:"operation"`
	Action    string `json:"action,omitempty"`
	Target    string `json:"target,omitempty"`
	Lease     uint64 `json:"lease,omitempty"`
	Keys      []name `json:"keys,omitempty"`
	// KeysOmitted is the number of names that the line has no room for.
	KeysOmitted int    `json:"keys_omitted,omitempty"`
	Missing     string `json:"missing,omitempty"`
	Outcome     string `json:"outcome"`
	Branch      string `json:"branch,omitempty"`
	Replayed    bool   `json:"replayed,omitempty"`
	Revision    uint64 `json:"revision,omitempty"`
	Dropped     uint64 `json:"dropped,omitempty"`
}

// name is a key, the name of a lock, or a range of either.
type name struct {
	Key   *string `json:"key,omitempty"`
	Lock  *string `json:"lock,omitempty"`
	Space string  `json:"space,omitempty"` // of a range: key or lock
	Start *string `json:"start,omitempty"`
	End   *string `json:"end,omitempty"` // none if the range has no end
	// As is base64 for what is not UTF-8, and hash for a hash; otherwise it is plain.
	As string `json:"as,omitempty"`
}

// The outcomes that are no error codes.
const (
	outcomeOK     = "ok"
	outcomeIntent = "intent"
	outcomeLost   = "lines_dropped"
)

// The bounds of what one line names. A transaction may have thousands of keys.
const (
	maxNames     = 128
	maxNameBytes = 16 << 10
)

// encode returns the line with the time.
func (l *Log) encode(ln *line) []byte {
	ln.Time = l.now().UTC().Format(time.RFC3339Nano)
	b, _ := json.Marshal(ln) // plain data always encodes
	return append(b, '\n')
}

// lostLines returns the line about n lost lines.
func (l *Log) lostLines(n uint64) []byte {
	return l.encode(&line{Operation: "audit", Outcome: outcomeLost, Dropped: n})
}

// span is a range of a space.
type span struct {
	space rights.Space
	rng   rights.Range
}

// names returns how the ranges are recorded, and how many are left out.
func (l *Log) names(spans []span) (out []name, omitted int) {
	if l.opts.Keys == KeysOff {
		return nil, 0
	}
	bytes := 0
	for i, s := range spans {
		bytes += len(s.rng.Start) + len(s.rng.End)
		if i == maxNames || bytes > maxNameBytes && i > 0 {
			return out, len(spans) - i
		}
		out = append(out, l.name(s))
	}
	return out, 0
}

func (l *Log) name(s span) name {
	n := name{}
	form := func(b []byte) *string { t := string(b); return &t }
	switch {
	case l.opts.Keys == KeysHashed:
		n.As, form = "hash", l.hash
	case !utf8.Valid(s.rng.Start) || !utf8.Valid(s.rng.End):
		n.As, form = "base64", func(b []byte) *string { t := base64.StdEncoding.EncodeToString(b); return &t }
	}
	switch {
	case s.rng.One && s.space == rights.Locks:
		n.Lock = form(s.rng.Start)
	case s.rng.One:
		n.Key = form(s.rng.Start)
	default:
		n.Space, n.Start = s.space.String(), form(s.rng.Start)
		if s.rng.End != nil {
			n.End = form(s.rng.End)
		}
	}
	return n
}

// hash returns the salted hash of a name. It hides names that cannot be guessed, and is short
// enough to compare by eye.
func (l *Log) hash(b []byte) *string {
	mac := hmac.New(sha256.New, []byte(l.opts.Salt()))
	_, _ = mac.Write(b) // never fails
	t := hex.EncodeToString(mac.Sum(nil)[:16])
	return &t
}

package opjson

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// field is a set of fields of operations and comparisons.
type field uint32

// Each byte string has two fields: one for text, and the next one for base64.
const (
	fieldKey field = 1 << iota
	fieldKeyBase64
	fieldPrefix
	fieldPrefixBase64
	fieldStart
	fieldStartBase64
	fieldEnd
	fieldEndBase64
	fieldValue
	fieldValueBase64
	fieldDelta
	fieldRevision
	fieldIfRevision
	fieldReturn
	fieldTTL
	fieldLease
	fieldKeepValue
	fieldKeepLease
	fieldLimit
	fieldReverse
	fieldKeysOnly
	fieldCountOnly
	fieldCreateRevision
	fieldVersion
	fieldExists

	anyKey    = fieldKey | fieldKeyBase64
	anyPrefix = fieldPrefix | fieldPrefixBase64
	anyStart  = fieldStart | fieldStartBase64
	anyEnd    = fieldEnd | fieldEndBase64
	anyRange  = anyPrefix | anyStart | anyEnd
	anyValue  = fieldValue | fieldValueBase64
	// inText are the fields of byte strings in the form of text.
	inText = fieldKey | fieldPrefix | fieldStart | fieldEnd | fieldValue
)

// fieldNames are in the order of the bits.
var fieldNames = [...]string{
	"key", "key_base64", "prefix", "prefix_base64", "start", "start_base64", "end", "end_base64", "value", "value_base64",
	"delta", "revision", "if_revision", "return", "ttl", "lease", "keep_value", "keep_lease",
	"limit", "reverse", "keys_only", "count_only", "create_revision", "version", "exists",
}

func fieldNamed(name []byte) field {
	switch string(name) {
	case "key":
		return fieldKey
	case "value":
		return fieldValue
	case "delta":
		return fieldDelta
	case "key_base64":
		return fieldKeyBase64
	case "value_base64":
		return fieldValueBase64
	}
	return rareField(name)
}

// rareField is fieldNamed for the fields that bulk loads do not have.
func rareField(name []byte) field {
	for i := range fieldNames {
		if string(name) == fieldNames[i] {
			return 1 << i
		}
	}
	return 0
}

// String lists the fields of the set.
func (f field) String() string {
	names := make([]string, 0, bits.OnesCount32(uint32(f)))
	for i, name := range fieldNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// selectors names the ways in which the fields of a set can say which keys are
// meant.
func selectors(f field) string {
	if f&anyKey != 0 {
		return "key, prefix, or start and end"
	}
	return "prefix, or start and end"
}

// boolean reads true or false.
func (s *scan) boolean(b *bool) bool {
	*b = s.word("true")
	return *b || s.word("false") || s.wrongType("true or false")
}

// leaseID reads the id of a lease from low on. Ids from 2^53 on are strings, because
// many readers of JSON keep numbers as doubles.
func (s *scan) leaseID(low uint64) (uint64, bool) {
	if s.peek() != '"' {
		n, ok := s.integer(int64(low), math.MaxInt64)
		if ok && n > limits.MaxSafeInteger {
			return 0, s.refuse("an id from 2^53 on must be a string: \"%d\"", n)
		}
		return uint64(n), ok
	}
	text, ok := s.str()
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text), 10, 63)
	if err != nil || n < low || text[0] == '0' && len(text) > 1 {
		return 0, s.refuse("expected the id of a lease, a decimal number from %d to 2^63-1, found %.40q", low, text)
	}
	return n, true
}

// ttl reads a time to live and returns it in milliseconds, rounded up.
func (s *scan) ttl() (int64, bool) {
	var text []byte
	var ok bool
	if c := s.peek(); c == '-' || c >= '0' && c <= '9' {
		text, ok = s.number()
	} else if text, ok = s.str(); !ok && s.err != nil && s.err.kind == nil {
		s.err.Reason = strings.Replace(s.err.Reason, "a string", "a duration (for example, \"30s\") or a number of seconds", 1)
	}
	if !ok {
		return 0, false
	}
	ms, err := ParseTTL(string(text))
	if err != nil {
		return 0, s.refuse("%v", err)
	}
	return ms, true
}

// ParseTTL reads a time to live, a Go duration or a bare number of seconds, and returns it
// in milliseconds, rounded up: a lease must not end before its time.
func ParseTTL(s string) (millis int64, err error) {
	d, err := ParseDuration(s)
	switch {
	case errors.Is(err, ErrTooLong), d.Milliseconds() > kvstore.MaxTTLMillis:
		return 0, fmt.Errorf("expected at most %d seconds (285 years), found %.40q", kvstore.MaxTTLMillis/1000, s)
	case err != nil || d <= 0:
		return 0, fmt.Errorf("expected a duration above 0 (for example, \"30s\") or a number of seconds, found %.40q", s)
	}
	return int64((d + time.Millisecond - 1) / time.Millisecond), nil
}

// ErrTooLong means that a duration would have more nanoseconds than 63 bits can count.
var ErrTooLong = errors.New("a duration has at most 292 years")

// durations are what time.ParseDuration takes, however long it is.
var durations = regexp.MustCompile(`^[0-9]+(\.[0-9]*)?(([nuµm]?s|m|h)([0-9]+(\.[0-9]*)?([nuµm]?s|m|h))*)$`)

// ParseDuration reads a Go duration; a bare number is seconds.
func ParseDuration(s string) (time.Duration, error) {
	if s != "" && strings.Trim(s, "0123456789.") == "" {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil && durations.MatchString(s) {
		return 0, ErrTooLong
	}
	return d, err
}

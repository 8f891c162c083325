package reply

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/kvstore"
)

const hexDigits = "0123456789abcdef"

// AppendString appends valid UTF-8 as a JSON string.
func AppendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// AppendBytes appends a field with a byte string: as text under its name if it is valid
// UTF-8, else in base64 under name_base64.
func AppendBytes(dst []byte, name string, b []byte) []byte {
	dst = append(dst, '"')
	dst = append(dst, name...)
	if utf8.Valid(b) {
		dst = append(dst, '"', ':')
		return AppendString(dst, b)
	}
	dst = append(dst, `_base64":"`...)
	dst = AppendBase64(dst, b)
	return append(dst, '"')
}

// BytesSize returns the length of a byte string in JSON, as AppendBytes writes it,
// without its name.
func BytesSize(b []byte) int64 {
	if !utf8.Valid(b) {
		return int64(base64.StdEncoding.EncodedLen(len(b))) + 2
	}
	n := int64(len(b)) + 2
	for _, c := range b {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\t', c == '\r':
			n++
		case c < ' ':
			n += 5
		}
	}
	return n
}

// AppendNumber appends a comma and a field with a number.
func AppendNumber(dst []byte, name string, n uint64) []byte {
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return strconv.AppendUint(dst, n, 10)
}

// AppendKV appends a pair with its metadata as an object.
func AppendKV(dst []byte, kv *kvstore.KV, keysOnly bool) []byte {
	return append(AppendPairFields(append(dst, '{'), kv, keysOnly), '}')
}

// AppendPairFields appends the fields of a pair, beginning with its key.
func AppendPairFields(dst []byte, kv *kvstore.KV, keysOnly bool) []byte {
	dst = AppendBytes(dst, "key", kv.Key)
	if !keysOnly {
		dst = append(dst, ',')
		dst = AppendBytes(dst, "value", kv.Value)
	}
	dst = AppendNumber(dst, "create_revision", kv.CreateRevision)
	dst = AppendNumber(dst, "mod_revision", kv.ModRevision)
	dst = AppendNumber(dst, "version", kv.Version)
	return AppendLease(dst, "lease", kv.Lease)
}

// AppendBase64 appends bytes in base64, without quotes.
func AppendBase64(dst, b []byte) []byte { return base64.StdEncoding.AppendEncode(dst, b) }

// AppendPrevious appends the field with the pair as it was before a change; nil means
// that there was none.
func AppendPrevious(doc []byte, kv *kvstore.KV) []byte {
	doc = append(doc, `,"previous":`...)
	if kv == nil {
		return append(doc, "null"...)
	}
	return AppendKV(doc, kv, false)
}

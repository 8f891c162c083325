package opjson

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The distinctions that callers make. An Error that wraps neither of these is
// about the content of valid JSON.
var (
	// ErrSyntax marks text that is not JSON or is nested too deeply.
	ErrSyntax = errors.New("invalid JSON")
	// ErrTooLarge marks a key or value that exceeds its limit.
	ErrTooLarge = errors.New("too large")
)

// Error is the first mistake in a text.
type Error struct {
	// Path leads to the value at fault, for example put.key or peer_urls[1]. It
	// is empty for the whole document.
	Path string
	// Offset is the position of the mistake in bytes, starting at 0.
	Offset int
	// Reason says what is wrong and what to do about it.
	Reason string

	kind error // ErrSyntax, ErrTooLarge or nil
}

// Error returns the reason after the path. A mistake in the syntax also has its
// position, in bytes from 1.
func (e *Error) Error() string {
	switch {
	case e.kind == ErrSyntax && e.Path != "":
		return fmt.Sprintf("invalid JSON at byte %d (in %s): %s", e.Offset+1, e.Path, e.Reason)
	case e.kind == ErrSyntax:
		return fmt.Sprintf("invalid JSON at byte %d: %s", e.Offset+1, e.Reason)
	case e.Path != "":
		return e.Path + ": " + e.Reason
	}
	return e.Reason
}

// Unwrap returns ErrSyntax, ErrTooLarge or nil.
func (e *Error) Unwrap() error { return e.kind }

// maxShownName bounds how much of an unknown field's name a path shows.
const maxShownName = 40

// level is an object or array that encloses a mistake.
type level struct {
	array bool
	index int    // of the current element of an array
	name  []byte // of the current field of an object; nil before it
}

// pathOf returns the path to the value, or to the field name, at offset. The
// text before offset must be free of mistakes in the syntax.
func pathOf(text []byte, offset int) string {
	var levels []level
	for i := 0; i <= offset && i < len(text); i++ {
		top := &level{array: true}
		if len(levels) > 0 {
			top = &levels[len(levels)-1]
		}
		switch c := text[i]; {
		case c == '"':
			end := i + 1 + stringLength(text[i+1:])
			if !top.array && top.name == nil {
				top.name = text[i+1 : end]
			}
			i = end
		case i == offset:
			// The object or array itself is at fault, not what it contains.
		case c == '{', c == '[':
			levels = append(levels, level{array: c == '['})
		case c == '}', c == ']':
			levels = levels[:len(levels)-1]
		case c == ',':
			top.index++
			top.name = nil
		}
	}
	return joined(levels)
}

// stringLength returns the number of bytes before the quote that ends a string,
// or all of them if there is none.
func stringLength(b []byte) int {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			return i
		case '\\':
			i++
		}
	}
	return len(b)
}

// joined writes the levels as then[3].put.key.
func joined(levels []level) string {
	var path strings.Builder
	for _, l := range levels {
		switch {
		case l.array:
			path.WriteString("[" + strconv.Itoa(l.index) + "]")
			continue
		case l.name == nil:
			continue
		case path.Len() > 0:
			path.WriteByte('.')
		}
		path.WriteString(shownName(l.name))
	}
	return path.String()
}

// shownName quotes a name with unusual characters. Otherwise the field "a.b"
// would look like a field b inside a, and a long one would drown the message.
func shownName(name []byte) string {
	cut := name[:min(len(name), maxShownName)]
	if len(bytes.Trim(cut, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")) == 0 && len(cut) == len(name) && len(name) > 0 {
		return string(name)
	}
	return fmt.Sprintf("%q", cut)
}

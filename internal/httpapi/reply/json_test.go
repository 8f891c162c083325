package reply

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestAppendStringIsJSON(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r < 0x3000; r++ {
		all.WriteRune(r)
	}
	for _, s := range []string{"", `"`, `\`, "a\nb", "\x00\x1f\x7f", "é\u2028😀", all.String()} {
		var back string
		if err := json.Unmarshal(AppendString(nil, []byte(s)), &back); err != nil || back != s {
			t.Errorf("%.40q came back as %.40q, %v", s, back, err)
		}
	}
}

func TestAppendBytesByValidity(t *testing.T) {
	for in, want := range map[string]string{
		"a":            `"key":"a"`,
		"\xff\x00":     `"key_base64":"/wA="`,
		"\xed\xa0\x80": `"key_base64":"7aCA"`, // a surrogate is no UTF-8
	} {
		if got := string(AppendBytes(nil, "key", []byte(in))); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// TestBytesSize: claims for answers are made by it.
func TestBytesSize(t *testing.T) {
	for _, s := range []string{"", "a", "\"\\\n\t\r", "\x00\x01\x1f\x7f", "é", "\xff", "\xff\xfe\xfd", strings.Repeat("\x02\xc3", 50)} {
		got := AppendBytes(nil, "", []byte(s))
		if want := len(strings.TrimPrefix(strings.TrimPrefix(string(got), `"_base64":`), `"":`)); BytesSize([]byte(s)) != int64(want) {
			t.Errorf("%q: %d, want %d", s, BytesSize([]byte(s)), want)
		}
	}
}

import java.util.regex.*;

/** Roman numerals: {@code {"request": 1984}} in, {@code {"request":1984,"roman":"MCMLXXXIV"}} out. What is larger is counted anew. */
class Handler {
    private static final int LARGEST = 3999;
    private static final int[] VALUES = {1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1};
    private static final String[] LETTERS = {"M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"};
    private static final Pattern REQUEST = Pattern.compile("\"request\"\\s*:\\s*(\\d{1,9})");

    static String handle(String event) {
        Matcher found = REQUEST.matcher(event);
        if (!found.find()) throw new IllegalArgumentException("send {\"request\": N}");
        int number = Integer.parseInt(found.group(1));
        return "{\"request\":" + number + ",\"roman\":\"" + roman((number - 1) % LARGEST + 1) + "\"}";
    }

    private static String roman(int number) {
        StringBuilder letters = new StringBuilder();
        for (int at = 0; at < VALUES.length; at++) {
            for (; number >= VALUES[at]; number -= VALUES[at]) letters.append(LETTERS[at]);
        }
        return letters.toString();
    }
}

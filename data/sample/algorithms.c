/* Textbook algorithms, written for this book (MIT, like the rest of the code): small functions to
 * look at, to search on and to test with. No headers, so that any C compiler takes them. */

typedef unsigned int u32;
typedef unsigned long u64;

struct point {
    int x, y;
};

int clamp(int value, int low, int high)
{
    if (value < low)
        return low;
    if (value > high)
        return high;
    return value;
}

int gcd(int a, int b)
{
    while (b != 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

u32 power_modulo(u32 base, u32 exponent, u32 modulus)
{
    u64 result = 1, factor = base % modulus;
    while (exponent) {
        if (exponent & 1)
            result = result * factor % modulus;
        factor = factor * factor % modulus;
        exponent >>= 1;
    }
    return (u32)result;
}

int population_count(u32 bits)
{
    int count = 0;
    for (int i = 0; i < 32; i++)
        if (bits & (1u << i))
            count++;
    return count;
}

u32 reverse_bits(u32 bits)
{
    u32 out = 0;
    for (int i = 0; i < 8; i++) {
        out = (out << 1) | (bits & 1);
        bits >>= 1;
    }
    return out;
}

u32 crc32(const unsigned char *data, int length)
{
    u32 crc = 0xffffffffu;
    for (int i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

u64 fnv1a(const char *text)
{
    u64 hash = 14695981039346656037ul;
    for (; *text; text++) {
        hash ^= (unsigned char)*text;
        hash *= 1099511628211ul;
    }
    return hash;
}

int fibonacci(int n)
{
    if (n < 2)
        return n;
    return fibonacci(n - 1) + fibonacci(n - 2);
}

int is_prime(int n)
{
    if (n < 2)
        return 0;
    for (int d = 2; d * d <= n; d++)
        if (n % d == 0)
            return 0;
    return 1;
}

int sieve(char *composite, int n)
{
    int primes = 0;
    for (int i = 0; i <= n; i++)
        composite[i] = 0;
    for (int i = 2; i <= n; i++) {
        if (composite[i])
            continue;
        primes++;
        for (int j = 2 * i; j <= n; j += i)
            composite[j] = 1;
    }
    return primes;
}

int binary_search(const int *sorted, int n, int key)
{
    int low = 0, high = n - 1;
    while (low <= high) {
        int middle = low + (high - low) / 2;
        if (sorted[middle] == key)
            return middle;
        if (sorted[middle] < key)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return -1;
}

void bubble_sort(int *a, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j + 1 < n - i; j++)
            if (a[j] > a[j + 1]) {
                int t = a[j];
                a[j] = a[j + 1];
                a[j + 1] = t;
            }
}

void insertion_sort(int *a, int n)
{
    for (int i = 1; i < n; i++) {
        int key = a[i], j = i - 1;
        while (j >= 0 && a[j] > key) {
            a[j + 1] = a[j];
            j--;
        }
        a[j + 1] = key;
    }
}

void counting_sort(unsigned char *a, int n)
{
    int count[256];
    for (int i = 0; i < 256; i++)
        count[i] = 0;
    for (int i = 0; i < n; i++)
        count[a[i]]++;
    for (int value = 0, at = 0; value < 256; value++)
        while (count[value]-- > 0)
            a[at++] = (unsigned char)value;
}

void matrix_multiply(const double *a, const double *b, double *c, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < n; k++)
                sum += a[i * n + k] * b[k * n + j];
            c[i * n + j] = sum;
        }
}

int trace4(int m[4][4])
{
    int sum = 0;
    for (int i = 0; i < 4; i++)
        sum += m[i][i];
    return sum;
}

int parse_integer(const char *text)
{
    int sign = 1, value = 0;
    while (*text == ' ' || *text == '\t')
        text++;
    if (*text == '-' || *text == '+')
        sign = *text++ == '-' ? -1 : 1;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return sign * value;
}

int string_compare(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return (unsigned char)*a - (unsigned char)*b;
}

void string_reverse(char *text, int length)
{
    for (int i = 0, j = length - 1; i < j; i++, j--) {
        char t = text[i];
        text[i] = text[j];
        text[j] = t;
    }
}

int is_palindrome(const char *text, int length)
{
    for (int i = 0; i < length / 2; i++)
        if (text[i] != text[length - 1 - i])
            return 0;
    return 1;
}

int longest_run(const int *a, int n)
{
    int best = 0, run = 0;
    for (int i = 0; i < n; i++) {
        run = (i > 0 && a[i] == a[i - 1]) ? run + 1 : 1;
        if (run > best)
            best = run;
    }
    return best;
}

int largest_sum(const int *a, int n)
{
    int best = a[0], here = a[0];
    for (int i = 1; i < n; i++) {
        here = here > 0 ? here + a[i] : a[i];
        best = here > best ? here : best;
    }
    return best;
}

int days_in_month(int month, int leap)
{
    switch (month) {
    case 2:
        return leap ? 29 : 28;
    case 4:
    case 6:
    case 9:
    case 11:
        return 30;
    default:
        return 31;
    }
}

int area2(const struct point *p, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) {
        const struct point *q = &p[(i + 1) % n];
        sum += p[i].x * q->y - q->x * p[i].y;
    }
    return sum < 0 ? -sum : sum;
}

int knapsack(const int *weight, const int *value, int n, int capacity, int *best)
{
    for (int w = 0; w <= capacity; w++)
        best[w] = 0;
    for (int i = 0; i < n; i++)
        for (int w = capacity; w >= weight[i]; w--) {
            int with = best[w - weight[i]] + value[i];
            if (with > best[w])
                best[w] = with;
        }
    return best[capacity];
}

int edit_distance(const char *a, int m, const char *b, int n, int *row)
{
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int cost = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < cost)
                cost = row[j] + 1;
            if (row[j - 1] + 1 < cost)
                cost = row[j - 1] + 1;
            row[j] = cost;
        }
    }
    return row[n];
}

int breadth_first(const char *edge, int n, int start, int *queue, int *distance)
{
    int head = 0, tail = 0;
    for (int i = 0; i < n; i++)
        distance[i] = -1;
    distance[start] = 0;
    queue[tail++] = start;
    while (head < tail) {
        int at = queue[head++];
        for (int next = 0; next < n; next++)
            if (edge[at * n + next] && distance[next] < 0) {
                distance[next] = distance[at] + 1;
                queue[tail++] = next;
            }
    }
    return tail;
}

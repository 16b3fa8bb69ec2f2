/* Write a file, read it in pieces, seek and tell. */
#include <stdio.h>
#include <string.h>

int main(void) {
    char piece[64];
    FILE *file = fopen("notes.txt", "w+");
    if (!file) {
        perror("notes.txt");
        return 1;
    }
    for (int line = 0; line < 40; line++) fprintf(file, "line %d of the notes\n", line);
    printf("at %ld\n", ftell(file));
    rewind(file);
    for (int line = 0; fgets(piece, sizeof piece, file); line++) {
        if (line % 5 == 0) printf("%ld: %s", ftell(file), piece);
        if (line == 20) {
            fseek(file, 0, SEEK_CUR);
            fputs("LINE", file);
            fseek(file, -4, SEEK_CUR);
        }
    }
    fseek(file, -12, SEEK_END);
    size_t count = fread(piece, 1, sizeof piece, file);
    printf("%zu bytes at the end: %.*s", count, (int)count, piece);
    fclose(file);
    return remove("notes.txt") == 0 && fopen("notes.txt", "r") == NULL ? 0 : 2;
}
